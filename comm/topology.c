#include "comm/comm_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Who is where: ranks, machines, hosts. */

shoal_status comm_mpi_check(int error, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;

    if (error == MPI_SUCCESS)
        return SHOAL_OK;
    MPI_Error_string(error, text, &n);
    text[strcspn(text, "\n")] = '\0';
    return fail(SHOAL_ERR_UNAVAILABLE, "%s: MPI: %s", what, text);
}

/* What the lowest failing rank tells. */
struct start_failure {
    int32_t status;
    char host_name[HOST_NAME_BYTES];
    char text[BOARD_TEXT_BYTES];
};

static void name_host(char out[HOST_NAME_BYTES])
{
    if (gethostname(out, HOST_NAME_BYTES) != 0)
        snprintf(out, HOST_NAME_BYTES, "unknown host");
    out[HOST_NAME_BYTES - 1] = '\0';
}

shoal_status comm_mpi_agree(const struct comm *comm, shoal_status status)
{
    struct start_failure failure = {.status = status};
    int own = status == SHOAL_OK ? comm->size : comm->rank, lowest = 0;

    SHOAL_TRY(comm_mpi_check(MPI_Allreduce(&own, &lowest, 1, MPI_INT, MPI_MIN, comm->world),
                             "agree on the start"));
    if (lowest == comm->size)
        return SHOAL_OK;
    name_host(failure.host_name);
    snprintf(failure.text, sizeof failure.text, "%s", shoal_last_error());
    SHOAL_TRY(
        comm_mpi_check(MPI_Bcast(&failure, (int)sizeof failure, MPI_BYTE, lowest, comm->world),
                       "tell why the start failed"));
    fail_adopt((shoal_status)failure.status, failure.text);
    return fail_context((shoal_status)failure.status, "rank %d (%s)", lowest, failure.host_name);
}

/*
 * The number of ranks that form a "host" of the collectives: all, if they are on one machine; else
 * the largest power of two such that aligned blocks of that many ranks lie on one machine each.
 * With 4 or 8 ranks on every machine that is the machine; with odd layouts a machine holds
 * several smaller hosts, down to one rank each, which is the flat exchange.  Only such
 * blocks are subtrees of the reduction tree, so sums have the same bits for every layout.
 */
static int block_size(const struct rank_entry *ranks, int size)
{
    for (int block = 1 << 30; block >= 1; block /= 2) {
        bool is_good = block <= size && size % block == 0;

        for (int r = 0; is_good && r < size; r++) {
            const struct rank_entry *first = &ranks[r - r % block];

            is_good = ranks[r].node == first->node && ranks[r].group == first->group;
        }
        if (is_good)
            return block;
    }
    return 1;
}

static bool is_one_host(const struct rank_entry *ranks, int size)
{
    for (int r = 1; r < size; r++)
        if (ranks[r].node != ranks[0].node || ranks[r].group != ranks[0].group)
            return false;
    return true;
}

/* Fill this rank's entry: the machine from MPI's shared-memory split, the rest from the system. */
static shoal_status describe_self(struct comm *comm, int ranks_per_host, uint16_t port,
                                  struct rank_entry *self)
{
    MPI_Comm node;
    int node_rank, node_ranks, first = comm->rank;

    SHOAL_TRY(comm_mpi_check(
        MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &node),
        "find the ranks of this machine"));
    MPI_Comm_rank(node, &node_rank);
    MPI_Comm_size(node, &node_ranks);
    shoal_status status =
        comm_mpi_check(MPI_Bcast(&first, 1, MPI_INT, 0, node), "find the ranks of this machine");
    MPI_Comm_free(&node);
    SHOAL_TRY(status);

    *self = (struct rank_entry){.node = first,
                                .group = ranks_per_host > 0 ? node_rank / ranks_per_host : 0,
                                .node_rank = node_rank,
                                .node_ranks = node_ranks,
                                .pid = getpid(),
                                .life_fd = comm->witness.life[0],
                                .has_witness = comm->witness.fd >= 0,
                                .port = port};
    self->n_addresses = comm_links_addresses(self->addresses, MAX_ADDRESSES);
    name_host(self->host_name);
    return SHOAL_OK;
}

shoal_status comm_topology_discover(struct comm *comm, int ranks_per_host, uint16_t port)
{
    struct rank_entry self;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(describe_self(comm, ranks_per_host, port, &self));
    comm->ranks = calloc((size_t)comm->size, sizeof *comm->ranks);
    if (comm->ranks == NULL)
        status = fail(SHOAL_ERR_NOMEM, "table of %d ranks: out of memory", comm->size);
    status = comm_mpi_agree(comm, status);
    if (status != SHOAL_OK) {
        free(comm->ranks);
        comm->ranks = NULL; /* on every rank: it chooses how to end */
        return status;
    }
    SHOAL_TRY(comm_mpi_check(MPI_Allgather(&self, (int)sizeof self, MPI_BYTE, comm->ranks,
                                           (int)sizeof self, MPI_BYTE, comm->world),
                             "exchange the table of ranks"));

    comm->local_size =
        is_one_host(comm->ranks, comm->size) ? comm->size : block_size(comm->ranks, comm->size);
    comm->host_count = comm->size / comm->local_size;
    comm->host = comm->rank / comm->local_size;
    comm->local_rank = comm->rank % comm->local_size;
    SHOAL_TRY(comm_mpi_check(MPI_Comm_split(comm->world, comm->host, comm->rank, &comm->local),
                             "group the ranks of a host"));
    return comm_mpi_check(MPI_Comm_split(comm->world, comm->local_rank, comm->rank, &comm->cross),
                          "group the ranks across hosts");
}
