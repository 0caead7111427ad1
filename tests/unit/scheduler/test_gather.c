/* How ranks find each other: all of them in one loop, over real links. */
#include "services/scheduler/gather.h"

#include "tests/unit/proto/bus_ends.h"

#define RANKS 3u

struct member {
    struct bus *bus;
    struct bus_peer *peer;
    uint32_t answers, wrong, refusals;
    char reason[300];
};

struct room {
    uv_loop_t loop;
    struct bus *bus;
    struct gather gather;
    struct member members[RANKS + 1];
    uint32_t ups;
    int rc; /* of the last message or end */
    struct err err;
};

static void room_up(void *ctx, struct bus_peer *peer)
{
    (void)peer;
    ((struct room *)ctx)->ups++;
}

static void room_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                         const void *message)
{
    struct room *r = ctx;

    assert_int_equal(header->type, PROTO_GATHER);
    r->rc = gather_take(&r->gather, peer, message, 0, &r->err);
}

static void room_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct room *r = ctx;

    r->ups--;
    r->rc = gather_down(&r->gather, peer, reason, &r->err);
}

static void member_up(void *ctx, struct bus_peer *peer)
{
    ((struct member *)ctx)->peer = peer;
}

/* Rank k's blob of round n is n + k bytes 'a' + k. */
static void member_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                           const void *message)
{
    const struct proto_gathered *all = message;
    struct member *m = ctx;

    (void)peer;
    assert_int_equal(header->type, PROTO_GATHERED);
    m->wrong += all->round != m->answers || all->blobs_count != RANKS;
    for (uint32_t k = 0; k < all->blobs_count; k++) {
        const struct proto_str *bytes = &all->blobs[k].bytes;

        m->wrong += bytes->len != all->round + k;
        for (size_t i = 0; i < bytes->len; i++)
            m->wrong += bytes->data[i] != (char)('a' + k);
    }
    m->answers++;
}

static void member_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)peer;
    (void)reason;
    ((struct member *)ctx)->peer = NULL;
}

static void member_refused(void *ctx, const char *reason)
{
    struct member *m = ctx;

    m->refusals++;
    (void)snprintf(m->reason, sizeof m->reason, "%s", reason);
}

static void member_connect(struct room *r, uint32_t i, const char *where)
{
    char name[16];
    struct bus_config c = {.loop = &r->loop,
                           .role = "worker",
                           .name = name,
                           .endpoint = where,
                           .on = {member_up, member_message, member_down, member_refused, NULL},
                           .ctx = &r->members[i]};

    (void)snprintf(name, sizeof name, "worker-%u", i);
    assert_int_equal(bus_connect(&c, &r->members[i].bus, NULL), 0);
}

static void room_open(struct room *r, const char *where)
{
    struct bus_config c = {.loop = &r->loop,
                           .role = "scheduler",
                           .name = "scheduler-0",
                           .endpoint = where,
                           .accepts = "worker",
                           .on = {room_up, room_message, room_down, NULL, NULL},
                           .ctx = r};

    *r = (struct room){0};
    assert_int_equal(uv_loop_init(&r->loop), 0);
    gather_init(&r->gather, RANKS);
    assert_int_equal(bus_bind(&c, &r->bus, NULL), 0);
    for (uint32_t i = 0; i <= RANKS; i++)
        member_connect(r, i, where);
    while (r->ups <= RANKS || !r->members[0].peer || !r->members[1].peer || !r->members[2].peer ||
           !r->members[3].peer)
        run_ms(&r->loop, 5);
}

static void room_close(struct room *r)
{
    for (uint32_t i = 0; i <= RANKS; i++)
        bus_close(&r->members[i].bus);
    bus_close(&r->bus);
    loop_end(&r->loop);
    gather_fini(&r->gather);
}

static void say(struct room *r, uint32_t member, uint32_t rank, uint32_t round)
{
    char bytes[16];
    const struct proto_gather m = {.rank = rank, .round = round, .blob = {bytes, round + rank}};

    memset(bytes, 'a' + (int)rank, sizeof bytes);
    assert_int_equal(bus_send(r->members[member].peer, PROTO_GATHER, 0, &m, NULL), 0);
}

static void test_rounds(void **state)
{
    struct room r;

    (void)state;
    room_open(&r, endpoint("rounds"));
    for (uint32_t round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < RANKS; i++)
            say(&r, (i + round) % RANKS, (i + round) % RANKS, round);
        while (r.members[0].answers + r.members[1].answers + r.members[2].answers !=
               RANKS * (round + 1))
            run_ms(&r.loop, 5);
    }
    for (uint32_t i = 0; i < RANKS; i++)
        assert_int_equal(r.members[i].wrong, 0);
    assert_int_equal(r.members[RANKS].answers, 0);
    room_close(&r);
}

static void wait_refusal(struct room *r, uint32_t member, const char *text)
{
    while (!r->members[member].refusals)
        run_ms(&r->loop, 5);
    assert_int_equal(r->rc, 0);
    assert_non_null(strstr(r->members[member].reason, text));
}

/* A worker that does not belong there is told so; the others meet all the same. */
static void test_strangers(void **state)
{
    struct room r;

    (void)state;
    room_open(&r, endpoint("strangers"));
    say(&r, 1, 7, 0);
    wait_refusal(&r, 1, "rank 7 is outside of the group's 3");
    say(&r, 0, 0, 0);
    run_ms(&r.loop, 50);
    say(&r, 2, 0, 0);
    wait_refusal(&r, 2, "rank 0 is worker-0 already");
    say(&r, 3, 1, 4);
    wait_refusal(&r, 3, "rank 1 meets in round 4, the others in 0");
    room_close(&r);
}

/* Before the ranks have met, another may take the place of one that is gone; not afterwards. */
static void test_gone(void **state)
{
    struct room r;

    (void)state;
    room_open(&r, endpoint("gone"));
    say(&r, 0, 0, 0);
    say(&r, 1, 1, 0);
    run_ms(&r.loop, 50);
    bus_close(&r.members[1].bus);
    while (r.ups > RANKS)
        run_ms(&r.loop, 5);
    assert_int_equal(r.rc, 0);
    say(&r, 3, 1, 0);
    say(&r, 2, 2, 0);
    while (r.members[3].answers < 1)
        run_ms(&r.loop, 5);
    assert_int_equal(r.members[3].wrong + r.members[1].answers, 0);
    bus_close(&r.members[2].bus);
    while (r.ups > RANKS - 1)
        run_ms(&r.loop, 5);
    assert_int_equal(r.rc, ERR_PEER);
    assert_non_null(strstr(r.err.msg, "rank 2 (worker-2) is gone after the ranks have met"));
    room_close(&r);
}

static void test_who_is_missing(void **state)
{
    struct room r;
    struct err err = {0};

    (void)state;
    room_open(&r, endpoint("missing"));
    assert_int_equal(gather_check(&r.gather, 1000000000, 60, &err), 0); /* nobody waits */
    say(&r, 1, 1, 0);
    run_ms(&r.loop, 50);
    assert_int_equal(gather_check(&r.gather, 59000000, 60, &err), 0);
    assert_int_equal(gather_check(&r.gather, 61000000, 60, &err), ERR_TIMEOUT);
    assert_string_equal(err.msg, "ranks have waited 60 s (--dist-timeout) to meet rank 0, 2");
    say(&r, 1, 1, 0);
    run_ms(&r.loop, 50);
    assert_int_equal(r.rc, ERR_PROTOCOL); /* twice */
    gather_reset(&r.gather);
    assert_int_equal(gather_check(&r.gather, 1000000000, 60, &err), 0);
    room_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounds),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_gone),
        cmocka_unit_test(test_who_is_missing),
    };

    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
