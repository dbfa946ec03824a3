-- Always the most probable token: the shortest policy there is.
turbo.policy(turbo.chain():temperature(0))
