/* core/daemon/notify.c: sd_notify(3) without libsystemd: one datagram to $NOTIFY_SOCKET. Any thread. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/daemon.h"

void turbod_notify(const char *state)
{
    const char *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t n = name ? strlen(name) : 0;
    if (n < 2 || n >= sizeof to.sun_path || (*name != '/' && *name != '@'))
        return;
    memcpy(to.sun_path, name, n);
    if (*name == '@') /* abstract namespace */
        to.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    /* Nobody listening is the manager's business, not ours. */
    ssize_t sent = sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&to, len);
    (void)sent;
    close(fd);
}

int turbod_notify_watchdog_ms(void)
{
    const char *usec = getenv("WATCHDOG_USEC");
    long long v = 0;
    if (!usec || !*usec || strlen(usec) > 15 || usec[strspn(usec, "0123456789")])
        return -1;
    for (; *usec; usec++)
        v = v * 10 + (*usec - '0');
    long long half = v / 2000;
    return half < 1 ? 1 : half > 3600000 ? 3600000 : (int)half;
}
