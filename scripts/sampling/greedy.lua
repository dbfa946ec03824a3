-- Always the most probable token: the shortest policy there is. A chain alone is a policy.
turbo.policy(turbo.chain():temperature(0))
