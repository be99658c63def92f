#include "tests/runtime/fake_device.h"

#include "runtime/base/clock.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_JOBS = 1 << 14 };

/* Like a CUDA event: a wait is for the record that was issued last when the wait was issued. */
struct device_event {
    long recorded, done;
    double seconds;
};

enum job_kind { JOB_RUN, JOB_RECORD, JOB_WAIT, JOB_STOP };

struct job {
    enum job_kind kind;
    fake_job_fn *fn;
    void *arg;
    struct device_event *event;
    long number; /* of the record */
};

struct queue {
    struct fake_device *fake;
    pthread_t thread;
    struct job jobs[MAX_JOBS];
    int n_jobs, n_done;
    unsigned seed;
};

/* Jobs of one queue. */
struct device_graph {
    enum device_queue queue;
    int n_jobs;
    struct job jobs[16];
};

struct fake_device {
    struct device device;
    struct device_graph *recording;
    int recorded, launched;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    struct queue queues[QUEUE_COUNT];
    int queue_waits, host_waits;
    bool ignore_waits, broken, cannot_record;
};

static struct fake_device *fake_of(const struct device *device)
{
    return (struct fake_device *)(void *)(uintptr_t)device;
}

static void pause_at_random(unsigned *seed)
{
    if (rand_r(seed) % 3 == 0)
        usleep((useconds_t)(rand_r(seed) % 300));
}

/* Called with the lock held. */
static void do_job(struct queue *queue, const struct job *job)
{
    struct fake_device *fake = queue->fake;

    if (job->kind == JOB_WAIT)
        while (job->event->done < job->number)
            pthread_cond_wait(&fake->moved, &fake->lock);
    if (job->kind == JOB_RECORD) {
        job->event->done = job->number;
        job->event->seconds = clock_seconds();
    }
    if (job->kind == JOB_RUN) {
        pthread_mutex_unlock(&fake->lock);
        pause_at_random(&queue->seed);
        job->fn(job->arg);
        pause_at_random(&queue->seed);
        pthread_mutex_lock(&fake->lock);
    }
}

static void *work(void *arg)
{
    struct queue *queue = arg;
    struct fake_device *fake = queue->fake;
    bool stop = false;

    pthread_mutex_lock(&fake->lock);
    while (!stop) {
        while (queue->n_done == queue->n_jobs)
            pthread_cond_wait(&fake->moved, &fake->lock);
        struct job job = queue->jobs[queue->n_done % MAX_JOBS];
        do_job(queue, &job);
        stop = job.kind == JOB_STOP;
        queue->n_done++;
        pthread_cond_broadcast(&fake->moved);
    }
    pthread_mutex_unlock(&fake->lock);
    return NULL;
}

static void issue(struct fake_device *fake, enum device_queue at, struct job job)
{
    struct queue *queue = &fake->queues[at];

    while (queue->n_jobs - queue->n_done == MAX_JOBS)
        pthread_cond_wait(&fake->moved, &fake->lock);
    queue->jobs[queue->n_jobs++ % MAX_JOBS] = job;
    pthread_cond_broadcast(&fake->moved);
}

void fake_device_issue(struct device *device, enum device_queue queue, fake_job_fn *fn, void *arg)
{
    struct fake_device *fake = fake_of(device);
    struct device_graph *graph = fake->recording;

    if (graph != NULL && graph->queue == queue) {
        graph->jobs[graph->n_jobs++] = (struct job){.kind = JOB_RUN, .fn = fn, .arg = arg};
        return;
    }
    pthread_mutex_lock(&fake->lock);
    issue(fake, queue, (struct job){.kind = JOB_RUN, .fn = fn, .arg = arg});
    pthread_mutex_unlock(&fake->lock);
}

static shoal_status fake_event_create(struct device *device, struct device_event **event_out)
{
    (void)device;
    *event_out = calloc(1, sizeof **event_out);
    return *event_out == NULL ? fail(SHOAL_ERR_NOMEM, "fake event") : SHOAL_OK;
}

static void fake_event_destroy(struct device *device, struct device_event *event)
{
    (void)device;
    free(event);
}

static shoal_status fake_event_record(struct device *device, struct device_event *event,
                                      enum device_queue queue)
{
    struct fake_device *fake = fake_of(device);

    pthread_mutex_lock(&fake->lock);
    issue(fake, queue,
          (struct job){.kind = JOB_RECORD, .event = event, .number = ++event->recorded});
    pthread_mutex_unlock(&fake->lock);
    return SHOAL_OK;
}

static shoal_status fake_event_wait(struct device *device, struct device_event *event,
                                    enum device_queue queue)
{
    struct fake_device *fake = fake_of(device);

    pthread_mutex_lock(&fake->lock);
    fake->queue_waits++;
    if (!fake->ignore_waits)
        issue(fake, queue,
              (struct job){.kind = JOB_WAIT, .event = event, .number = event->recorded});
    pthread_mutex_unlock(&fake->lock);
    return SHOAL_OK;
}

static shoal_status fake_event_sync(struct device *device, struct device_event *event)
{
    struct fake_device *fake = fake_of(device);

    pthread_mutex_lock(&fake->lock);
    fake->host_waits++;
    while (event->done < event->recorded)
        pthread_cond_wait(&fake->moved, &fake->lock);
    pthread_mutex_unlock(&fake->lock);
    return SHOAL_OK;
}

static shoal_status fake_event_seconds(struct device *device, struct device_event *from,
                                       struct device_event *to, double *seconds_out)
{
    (void)device;
    *seconds_out = to->seconds - from->seconds;
    return SHOAL_OK;
}

static shoal_status fake_queue_sync(struct device *device, enum device_queue queue)
{
    struct fake_device *fake = fake_of(device);

    pthread_mutex_lock(&fake->lock);
    while (fake->queues[queue].n_done < fake->queues[queue].n_jobs)
        pthread_cond_wait(&fake->moved, &fake->lock);
    bool broken = fake->broken;
    pthread_mutex_unlock(&fake->lock);
    return broken ? fail(SHOAL_ERR_UNAVAILABLE, "the device has fallen off the bus") : SHOAL_OK;
}

static shoal_status fake_record_begin(struct device *device, enum device_queue queue)
{
    struct fake_device *fake = fake_of(device);

    if (fake->cannot_record)
        return fail(SHOAL_ERR_UNAVAILABLE, "this cannot be recorded");
    fake->recording = calloc(1, sizeof *fake->recording);
    fake->recording->queue = queue;
    return SHOAL_OK;
}

static shoal_status fake_record_end(struct device *device, enum device_queue queue,
                                    struct device_graph **graph_out)
{
    struct fake_device *fake = fake_of(device);

    (void)queue;
    *graph_out = fake->recording;
    fake->recording = NULL;
    fake->recorded++;
    return SHOAL_OK;
}

static shoal_status fake_graph_launch(struct device *device, struct device_graph *graph,
                                      enum device_queue queue)
{
    struct fake_device *fake = fake_of(device);

    pthread_mutex_lock(&fake->lock);
    for (int i = 0; i < graph->n_jobs; i++)
        issue(fake, queue, graph->jobs[i]);
    fake->launched++;
    pthread_mutex_unlock(&fake->lock);
    return SHOAL_OK;
}

static void fake_graph_destroy(struct device *device, struct device_graph *graph)
{
    fake_of(device)->recorded--;
    free(graph);
}

static const struct device_ops fake_ops = {.name = "fake",
                                           .separate = true,
                                           .queue_sync = fake_queue_sync,
                                           .event_create = fake_event_create,
                                           .event_destroy = fake_event_destroy,
                                           .event_record = fake_event_record,
                                           .event_wait = fake_event_wait,
                                           .event_sync = fake_event_sync,
                                           .event_seconds = fake_event_seconds,
                                           .record_begin = fake_record_begin,
                                           .record_end = fake_record_end,
                                           .graph_launch = fake_graph_launch,
                                           .graph_destroy = fake_graph_destroy};

struct device *fake_device_open(unsigned seed)
{
    struct fake_device *fake = calloc(1, sizeof *fake);

    fake->device.ops = &fake_ops;
    pthread_mutex_init(&fake->lock, NULL);
    pthread_cond_init(&fake->moved, NULL);
    for (int i = 0; i < QUEUE_COUNT; i++) {
        fake->queues[i].fake = fake;
        fake->queues[i].seed = seed * 31u + (unsigned)i;
        pthread_create(&fake->queues[i].thread, NULL, work, &fake->queues[i]);
    }
    return &fake->device;
}

void fake_device_close(struct device *device)
{
    struct fake_device *fake = fake_of(device);

    pthread_mutex_lock(&fake->lock);
    for (int i = 0; i < QUEUE_COUNT; i++)
        issue(fake, (enum device_queue)i, (struct job){.kind = JOB_STOP});
    pthread_mutex_unlock(&fake->lock);
    for (int i = 0; i < QUEUE_COUNT; i++)
        pthread_join(fake->queues[i].thread, NULL);
    pthread_cond_destroy(&fake->moved);
    pthread_mutex_destroy(&fake->lock);
    free(fake);
}

int fake_device_queue_waits(const struct device *device)
{
    return fake_of(device)->queue_waits;
}

int fake_device_host_waits(const struct device *device)
{
    return fake_of(device)->host_waits;
}

void fake_device_ignore_waits(struct device *device)
{
    fake_of(device)->ignore_waits = true;
}

void fake_device_break(struct device *device)
{
    fake_of(device)->broken = true;
}

int fake_device_graphs(const struct device *device)
{
    return fake_of(device)->recorded;
}

int fake_device_launches(const struct device *device)
{
    return fake_of(device)->launched;
}

void fake_device_refuse_recording(struct device *device)
{
    fake_of(device)->cannot_record = true;
}
