#include "comm/comm_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * Datagrams between hosts.  MPI may be the very thing that hangs, so heartbeats and failures
 * take their own way: the leader of each host sends one datagram per heartbeat to every
 * other leader, and any rank sends one when it posts a failure.
 *
 * A datagram is one struct beat in native byte order (all ranks run the same program; the magic
 * number refuses others).  Lost ones do not matter: the next carries the same or newer facts. A
 * host is watched from its first datagram on, so a firewall between hosts costs the detection of
 * silent hosts, not the run.
 */
enum { BEAT_MAGIC = 0x53484f41 };

struct beat {
    uint32_t magic;
    int32_t host; /* sender */
    uint64_t token;
    uint64_t number;   /* the leader's heartbeat; 0: from another rank, says nothing of time */
    uint64_t progress; /* notes and calls of all ranks of the host */
    uint64_t slowest_calls;
    int32_t slowest_rank;
    int32_t failure_status, failure_rank; /* status 0: none */
    int32_t is_closing;                   /* all ranks of the host have come to comm_close */
    struct note note;
    char text[BOARD_TEXT_BYTES];
};

struct links {
    int fd;
    struct sockaddr_in *peers; /* [host_count]; port 0: no way to reach it */
    struct link_state {
        bool is_heard;
        uint64_t number;
        struct patience silence;
    } * states; /* [host_count], the leader's watchdog only */
};

shoal_status comm_links_socket(int *fd_out, uint16_t *port_out)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t n = sizeof address;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return fail(SHOAL_ERR_UNAVAILABLE, "heartbeat socket: %s", strerror(errno));
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &n) != 0) {
        shoal_status status =
            fail(SHOAL_ERR_UNAVAILABLE, "heartbeat socket: cannot bind: %s", strerror(errno));
        close(fd);
        return status;
    }
    *fd_out = fd;
    *port_out = address.sin_port;
    return SHOAL_OK;
}

int comm_links_addresses(struct host_address *out, int max)
{
    struct ifaddrs *list;
    int n = 0;

    if (getifaddrs(&list) != 0)
        return 0;
    for (const struct ifaddrs *i = list; i != NULL && n < max; i = i->ifa_next) {
        if (i->ifa_addr == NULL || i->ifa_netmask == NULL || i->ifa_addr->sa_family != AF_INET ||
            (i->ifa_flags & IFF_LOOPBACK) != 0 || (i->ifa_flags & IFF_UP) == 0)
            continue;
        struct sockaddr_in address, mask;

        memcpy(&address, i->ifa_addr, sizeof address);
        memcpy(&mask, i->ifa_netmask, sizeof mask);
        out[n++] =
            (struct host_address){.address = address.sin_addr.s_addr, .mask = mask.sin_addr.s_addr};
    }
    freeifaddrs(list);
    return n;
}

/* The peer's address on a network that both are on, else its first one. */
static uint32_t choose_address(const struct rank_entry *self, const struct rank_entry *peer)
{
    if (self->node == peer->node)
        return htonl(INADDR_LOOPBACK);
    for (int i = 0; i < peer->n_addresses; i++)
        for (int k = 0; k < self->n_addresses; k++) {
            uint32_t mask = self->addresses[k].mask;

            if ((peer->addresses[i].address & mask) == (self->addresses[k].address & mask))
                return peer->addresses[i].address;
        }
    return peer->n_addresses > 0 ? peer->addresses[0].address : 0;
}

shoal_status comm_links_create(struct comm *comm, int fd, struct links **links_out)
{
    struct links *links = calloc(1, sizeof *links);
    size_t n = (size_t)comm->host_count;

    if (links != NULL) {
        links->fd = fd;
        links->peers = calloc(n, sizeof *links->peers);
        links->states = calloc(n, sizeof *links->states);
    }
    if (links == NULL || links->peers == NULL || links->states == NULL) {
        if (links != NULL)
            links->fd = -1; /* stays the caller's */
        comm_links_destroy(links);
        return fail(SHOAL_ERR_NOMEM, "links to %d hosts: out of memory", comm->host_count);
    }
    for (int h = 0; h < comm->host_count; h++) {
        const struct rank_entry *peer = &comm->ranks[leader_of(comm, h)];
        uint32_t address = choose_address(&comm->ranks[comm->rank], peer);

        links->peers[h] = (struct sockaddr_in){.sin_family = AF_INET,
                                               .sin_port = address != 0 ? peer->port : 0,
                                               .sin_addr.s_addr = address};
        atomic_store(&comm->control_hosts[h].slowest_rank, leader_of(comm, h));
    }
    *links_out = links;
    return SHOAL_OK;
}

void comm_links_destroy(struct links *links)
{
    if (links == NULL)
        return;
    if (links->fd >= 0)
        close(links->fd);
    free(links->peers);
    free(links->states);
    free(links);
}

int comm_links_descriptor(const struct links *links)
{
    return links->fd;
}

static void fill_beat(const struct comm *comm, struct beat *beat)
{
    uint64_t slowest = UINT64_MAX;
    int slowest_local = 0;

    beat->is_closing = comm_is_closing_here(comm);
    for (int l = 0; l < comm->local_size; l++) {
        uint64_t calls = atomic_load(&comm->control_ranks[l].calls);

        beat->progress += atomic_load(&comm->control_ranks[l].progress);
        if (calls < slowest) {
            slowest = calls;
            slowest_local = l;
        }
    }
    beat->slowest_calls = slowest;
    beat->slowest_rank = leader_of(comm, comm->host) + slowest_local;
    beat->note = comm_note_read(&comm->control_ranks[slowest_local].note);
    if (comm_board_is_set(comm)) {
        beat->failure_status = comm->control->board.status;
        beat->failure_rank = comm->control->board.rank;
        memcpy(beat->text, comm->control->board.text, sizeof beat->text);
    }
}

void comm_links_send(struct comm *comm)
{
    struct links *links = comm->links;
    struct beat beat = {.magic = BEAT_MAGIC,
                        .host = comm->host,
                        .token = comm->token,
                        .number = is_leader(comm) ? atomic_load(&comm->self->heartbeat) : 0};

    fill_beat(comm, &beat);
    for (int h = 0; h < comm->host_count; h++)
        if (h != comm->host && links->peers[h].sin_port != 0)
            (void)sendto(links->fd, &beat, sizeof beat, MSG_DONTWAIT | MSG_NOSIGNAL,
                         (const struct sockaddr *)&links->peers[h], sizeof links->peers[h]);
}

static bool is_sane(const struct comm *comm, const struct beat *beat, ssize_t n_bytes)
{
    return n_bytes == (ssize_t)sizeof *beat && beat->magic == BEAT_MAGIC &&
           beat->token == comm->token && beat->host >= 0 && beat->host < comm->host_count &&
           beat->host != comm->host && beat->slowest_rank >= 0 && beat->slowest_rank < comm->size &&
           beat->failure_rank >= 0 && beat->failure_rank < comm->size &&
           beat->failure_status <= 0 && beat->failure_status >= SHOAL_ERR_CONFIG;
}

static void take_in(struct comm *comm, struct beat *beat)
{
    struct control_host *host = &comm->control_hosts[beat->host];
    struct link_state *state = &comm->links->states[beat->host];

    if (beat->failure_status != SHOAL_OK) {
        beat->text[BOARD_TEXT_BYTES - 1] = '\0';
        comm_board_adopt(comm, (shoal_status)beat->failure_status, beat->failure_rank, beat->text);
    }
    if (beat->is_closing)
        atomic_store(&host->is_closing, 1);
    if (beat->number <= state->number)
        return; /* late or from a rank that does not lead */
    state->number = beat->number;
    state->is_heard = true;
    patience_start(&state->silence);
    beat->note.what[NOTE_BYTES - 1] = '\0';
    comm_note_write(&host->note, beat->note.step, beat->note.what);
    atomic_store(&host->slowest_rank, beat->slowest_rank);
    atomic_store(&host->slowest_calls, beat->slowest_calls);
    atomic_store(&host->progress, beat->progress);
}

void comm_links_receive(struct comm *comm)
{
    struct beat beat;
    ssize_t n;

    while ((n = recv(comm->links->fd, &beat, sizeof beat, MSG_TRUNC)) >= 0)
        if (is_sane(comm, &beat, n))
            take_in(comm, &beat);
}

int comm_links_silent_host(struct comm *comm, double timeout_s)
{
    int silent = -1;

    for (int h = 0; h < comm->host_count; h++) {
        struct link_state *state = &comm->links->states[h];

        if (state->is_heard && patience_spent(&state->silence) > timeout_s && silent < 0)
            silent = h;
    }
    return silent;
}
