#include "comm/transport_internal.h"
#include "runtime/base/host.h"
#include "runtime/base/pages.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* Start and end of the communication. */

#define DEFAULT_TIMEOUT_S   30.0
#define DEFAULT_HEARTBEAT_S 0.1
#define CLOSE_WAIT_S        1.0 /* for peers to learn of a failure */
#define FINALIZE_LIMIT_S    5.0

/* ---- start ---- */

static bool has_launcher(void)
{
    return getenv("PMI_RANK") != NULL || getenv("PMI_FD") != NULL || getenv("PMI_PORT") != NULL ||
           getenv("PMIX_RANK") != NULL;
}

/*
 * Die with the launcher: when hydra's proxy is killed its ranks would live on, spinning.  Not
 * without a launcher: a run started from a shell may outlive the shell (nohup).
 */
static shoal_status die_with_parent(void)
{
    pid_t parent = getppid();

    if (!has_launcher())
        return SHOAL_OK;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        return fail(SHOAL_ERR_UNAVAILABLE, "launcher (pid %d) died while the rank started",
                    (int)parent);
    return SHOAL_OK;
}

static shoal_status take_params(struct comm *comm, const struct comm_params *params)
{
    struct comm_params given = params != NULL ? *params : (struct comm_params){0};

    comm->timeout_s = given.timeout_s > 0 ? given.timeout_s : DEFAULT_TIMEOUT_S;
    comm->heartbeat_s = given.heartbeat_s > 0 ? given.heartbeat_s : DEFAULT_HEARTBEAT_S;
    comm->ring = given.ring;
    comm->wanted = given.transport;
    comm->transport = &comm_transport_mpi;
    if (comm->heartbeat_s < 1e-3 || comm->heartbeat_s > PATIENCE_GAP_S / 2)
        return fail(SHOAL_ERR_CONFIG, "comm heartbeat %g s: expected 0.001 to %g",
                    comm->heartbeat_s, PATIENCE_GAP_S / 2);
    if (comm->timeout_s < 4 * comm->heartbeat_s)
        return fail(SHOAL_ERR_CONFIG,
                    "comm timeout %g s: expected at least four heartbeats of %g s", comm->timeout_s,
                    comm->heartbeat_s);
    if (given.ranks_per_host < 0)
        return fail(SHOAL_ERR_CONFIG, "comm ranks_per_host %d: expected 0 or more",
                    given.ranks_per_host);
    return SHOAL_OK;
}

static void name_library(char *out, size_t n_bytes)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    char version[32];
    int n;

    MPI_Get_library_version(text, &n);
    if (sscanf(text, "MPICH Version: %31s", version) == 1) {
        snprintf(out, n_bytes, "MPICH %s", version);
        return;
    }
    snprintf(out, n_bytes, "%.*s", (int)strcspn(text, "\n,"), text);
}

static shoal_status mpi_start(struct comm *comm)
{
    int is_started = 0, provided = 0;

    MPI_Initialized(&is_started);
    if (is_started)
        return fail(SHOAL_ERR_INTERNAL, "comm_open: MPI is started already");
    SHOAL_TRY(
        comm_mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided), "start MPI"));
    name_library(comm->library, sizeof comm->library);
    comm->world = MPI_COMM_WORLD;
    MPI_Comm_set_errhandler(comm->world, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm->world, &comm->rank);
    MPI_Comm_size(comm->world, &comm->size);
    if (provided < MPI_THREAD_MULTIPLE)
        return fail(SHOAL_ERR_UNAVAILABLE,
                    "%s gives thread level %d, expected MPI_THREAD_MULTIPLE (%d)", comm->library,
                    provided, MPI_THREAD_MULTIPLE);
    return SHOAL_OK;
}

static shoal_status open_control(struct comm *comm)
{
    size_t n_bytes = comm_control_bytes(comm->local_size, comm->host_count);
    shoal_status status = SHOAL_OK;
    int fd = -1;

    if (is_leader(comm)) {
        status = comm_memory_make("shoal-control", n_bytes, &comm->control_memory);
        fd = status == SHOAL_OK ? comm->control_memory.fd : -1;
    }
    SHOAL_TRY(comm_mpi_check(MPI_Bcast(&fd, 1, MPI_INT, 0, comm->local), "share the control area"));
    if (!is_leader(comm))
        status = fd < 0 ? fail(SHOAL_ERR_UNAVAILABLE, "rank %d made no control area",
                               leader_of(comm, comm->host))
                        : comm_memory_attach("shoal-control",
                                             comm->ranks[leader_of(comm, comm->host)].pid, fd,
                                             n_bytes, &comm->control_memory);
    SHOAL_TRY(comm_mpi_agree(comm, status));
    comm_control_bind(comm);
    return SHOAL_OK;
}

static shoal_status allocate(struct comm *comm)
{
    int most = comm->local_size > comm->host_count ? comm->local_size : comm->host_count;

    comm->inputs = calloc((size_t)most, sizeof *comm->inputs);
    comm->verdicts = calloc((size_t)comm->size, sizeof *comm->verdicts);
    if (comm->inputs == NULL || comm->verdicts == NULL)
        return fail(SHOAL_ERR_NOMEM, "communication of %d ranks: out of memory", comm->size);
    if (comm->host_count == 1)
        return SHOAL_OK;
    void *staging;

    SHOAL_TRY(pages_alloc("exchange between hosts", (size_t)2 * WIRE_JOBS * PIECE_BYTES, &staging));
    comm->staging = staging;
    comm->staging_bytes = (size_t)2 * WIRE_JOBS * PIECE_BYTES;
    return SHOAL_OK;
}

/* Spin before sleeping only where every rank of the machine has a core of its own. */
static int choose_spins(const struct comm *comm)
{
    return host_cpus() >= comm->ranks[comm->rank].node_ranks ? 2000 : 20;
}

static shoal_status start_threads(struct comm *comm, int *socket_fd)
{
    if (comm->host_count > 1) {
        SHOAL_TRY(comm_links_create(comm, *socket_fd, &comm->links));
        *socket_fd = -1;
    }
    if (comm->size > 1 && (comm->host_count > 1 || comm->ring))
        SHOAL_TRY(comm_wire_create(comm, &comm->wire));
    if (comm->size > 1)
        SHOAL_TRY(comm_watchdog_create(comm, &comm->watchdog));
    return SHOAL_OK;
}

static shoal_status connect_ranks(struct comm *comm, int ranks_per_host)
{
    uint16_t port = 0;
    int socket_fd = -1;

    shoal_status status = comm_links_socket(&socket_fd, &port);
    SHOAL_TRY_GOTO(comm_mpi_agree(comm, status), err_close);
    SHOAL_TRY_GOTO(comm_topology_discover(comm, ranks_per_host, port), err_close);
    comm->token = ((uint64_t)getpid() << 32) ^ (uint64_t)(clock_wall() * 1e6);
    SHOAL_TRY_GOTO(
        comm_mpi_check(MPI_Bcast(&comm->token, (int)sizeof comm->token, MPI_BYTE, 0, comm->world),
                       "share the run's token"),
        err_close);
    SHOAL_TRY_GOTO(open_control(comm), err_close);
    comm->spins = choose_spins(comm);
    status = allocate(comm);
    SHOAL_TRY_GOTO(comm_mpi_agree(comm, status), err_close);
    MPI_Comm_free(&comm->local);
    status = start_threads(comm, &socket_fd);
    /* The last MPI call of this thread: from here on only the communication thread makes them. */
    SHOAL_TRY_GOTO(comm_mpi_agree(comm, status), err_close);
    /* Now that all ranks stay: after a failed start they leave, and that is no death. */
    comm_witness_brief(&comm->witness, comm);

err_close:
    if (socket_fd >= 0)
        close(socket_fd);
    return status;
}

static void release(struct comm *comm)
{
    comm_memory_release(&comm->window);
    comm_memory_release(&comm->control_memory);
    if (comm->staging != NULL)
        pages_free(comm->staging, comm->staging_bytes);
    free(comm->verdicts);
    free(comm->inputs);
    free(comm->ranks);
    free(comm);
}

shoal_status comm_open(const struct comm_params *params, struct comm **comm_out)
{
    struct comm *comm = calloc(1, sizeof *comm);
    shoal_status status;

    if (comm == NULL)
        return fail(SHOAL_ERR_NOMEM, "comm_open: out of memory");
    SHOAL_TRY_GOTO(take_params(comm, params), err_release);
    SHOAL_TRY_GOTO(die_with_parent(), err_release);
    comm_witness_begin(&comm->witness, has_launcher());
    SHOAL_TRY_GOTO(mpi_start(comm), err_witness);
    SHOAL_TRY_GOTO(connect_ranks(comm, params != NULL ? params->ranks_per_host : 0), err_threads);
    *comm_out = comm;
    return SHOAL_OK;

err_threads:
    atomic_store(&comm->is_closing, true);
    comm_watchdog_destroy(comm->watchdog);
    comm_wire_destroy(comm->wire);
    comm_links_destroy(comm->links);
    comm_end_finalize(comm, status, FINALIZE_LIMIT_S);
err_witness:
    comm_witness_end(&comm->witness);
err_release:
    release(comm);
    return status;
}

/* ---- end ---- */

/* A host that was never heard cannot be heard now. */
static bool is_closing_everywhere(const struct comm *comm)
{
    for (int h = 0; h < comm->host_count; h++)
        if (h != comm->host && atomic_load(&comm->control_hosts[h].progress) > 0 &&
            atomic_load(&comm->control_hosts[h].is_closing) == 0)
            return false;
    return comm_is_closing_here(comm);
}

/* After a failure: give the others a moment to learn of it.  True if all did. */
static bool wait_for_closing(struct comm *comm, double limit_s)
{
    const struct timespec nap = {.tv_nsec = 5 * 1000 * 1000};
    struct patience patience;

    patience_start(&patience);
    while (!is_closing_everywhere(comm)) {
        if (patience_spent(&patience) > limit_s)
            return false;
        nanosleep(&nap, NULL);
    }
    return true;
}

/* The last meeting of a good run. */
static shoal_status close_together(struct comm *comm)
{
    comm_call_enter(comm, CALL_CLOSE, 0);
    SHOAL_TRY(comm_call_meet(comm));
    if (comm->host_count > 1)
        return comm_wire_run(comm, &(struct wire_job){.kind = WIRE_BARRIER});
    return SHOAL_OK;
}

/* Let everyone know, and what was printed so far through: the first to go may end them all. */
static void close_after_failure(struct comm *comm, shoal_status status)
{
    comm_fail(comm, status);
    comm_end_flush();
    atomic_store(&comm->self->is_closing, 1);
    if (comm->links != NULL)
        comm_links_send(comm);
}

shoal_status comm_close(struct comm *comm, shoal_status status)
{
    bool all_are_here = true;

    if (comm == NULL)
        return status;
    /* Before the last meeting: after it ranks leave, and nobody may take that for a death. */
    atomic_store(&comm->is_closing, true);
    if (status == SHOAL_OK) {
        comm_witness_dismiss(&comm->witness);
        status = close_together(comm);
    }
    if (status != SHOAL_OK)
        close_after_failure(comm, status);
    atomic_store(&comm->self->is_closing, 1);
    bool has_stopped = comm->transport->stop == NULL || comm->transport->stop(comm, status);

    if (status != SHOAL_OK)
        all_are_here = wait_for_closing(comm, CLOSE_WAIT_S);
    comm_witness_dismiss(&comm->witness);
    comm_watchdog_destroy(comm->watchdog);
    if (!comm_wire_destroy(comm->wire) || !all_are_here || !has_stopped) {
        comm_board_tell(comm);
        comm_end_abort(status);
    }
    comm_links_destroy(comm->links);
    /* After a failure the device may be in any state, and its memory goes with the process. */
    if (status == SHOAL_OK)
        comm_device_give(comm);
    comm_end_finalize(comm, status, FINALIZE_LIMIT_S);
    comm_witness_end(&comm->witness);
    release(comm);
    return status;
}

/* As comm_agree and the board do; in front of those this rank's name would be a second one. */
static bool names_a_rank(const char *message)
{
    char host;
    int rank;

    return sscanf(message, "rank %d (%c", &rank, &host) == 2;
}

void comm_fail(struct comm *comm, shoal_status status)
{
    const char *message = shoal_last_error();
    char text[BOARD_TEXT_BYTES];

    if (status == SHOAL_OK || comm_board_is_set(comm))
        return;
    if (names_a_rank(message))
        snprintf(text, sizeof text, "%s", message);
    else
        snprintf(text, sizeof text, "rank %d (%s): %s", comm->rank,
                 comm->ranks[comm->rank].host_name, message);
    comm_board_post(comm, status, comm->rank, text);
}

void comm_note(struct comm *comm, int64_t step, const char *what)
{
    comm_note_write(&comm->self->note, step, what);
    atomic_fetch_add_explicit(&comm->self->progress, 1, memory_order_relaxed);
}

/* ---- questions ---- */

int comm_rank(const struct comm *comm)
{
    return comm->rank;
}

int comm_size(const struct comm *comm)
{
    return comm->size;
}

int comm_local_rank(const struct comm *comm)
{
    return comm->local_rank;
}

int comm_local_size(const struct comm *comm)
{
    return comm->local_size;
}

int comm_host(const struct comm *comm)
{
    return comm->host;
}

int comm_host_count(const struct comm *comm)
{
    return comm->host_count;
}

int comm_node_ranks(const struct comm *comm)
{
    return comm->ranks[comm->rank].node_ranks;
}

int comm_node_rank(const struct comm *comm)
{
    return comm->ranks[comm->rank].node_rank;
}

const char *comm_library(const struct comm *comm)
{
    return comm->library;
}

size_t comm_staging_bytes(const struct comm *comm)
{
    return comm->staging_bytes;
}

struct comm_ledger comm_ledger_read(const struct comm *comm)
{
    return comm->ledger;
}

void comm_ledger_reset(struct comm *comm)
{
    comm->ledger = (struct comm_ledger){0};
}

void comm_use_pool(struct comm *comm, struct pool *pool)
{
    comm->pool = pool;
}
