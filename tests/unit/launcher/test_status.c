#include "services/launcher/status.h"

#include "common/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct proto_process_status processes[] = {
    {.pid = 7, .uptime_us = UINT64_C(3261) * 1000000, .memory_bytes = 3 << 20},
    {.pid = 4294967295u,
     .uptime_us = UINT64_C(100) * 86400 * 1000000,
     .restarts = 12,
     .memory_bytes = UINT64_C(900) << 30},
};
static struct proto_replica_status replicas[] = {
    {.epoch = 1, .ready = true, .tp_size = 2, .ranks = 3, .pages_total = 100, .pages_free = 58},
    {.replica = 1, .epoch = 9, .tp_size = 64, .ranks = 1, .running = 5, .waiting = 6},
};

static struct proto_node_status example(void)
{
    processes[0].name = proto_str("launcher");
    processes[1].name = proto_str("worker-127");
    replicas[1].reason = proto_str("recovering");
    return (struct proto_node_status){
        .version = proto_str("1.2"),
        .model = proto_str("a \"model\""),
        .uptime_us = 59900000,
        .processes = processes,
        .processes_count = 2,
        .replicas = replicas,
        .replicas_count = 2,
    };
}

static void test_table(void **state)
{
    struct proto_node_status m = example();
    struct buf out = {0};

    (void)state;
    status_table(&m, &out);
    assert_string_equal(out.data,
                        "Phalanx 1.2: a \"model\", not ready, up 59.9s\n\n"
                        "PROCESS               PID       UP  RESTARTS       MEMORY\n"
                        "launcher                7   54m21s         0      3.0 MiB\n"
                        "worker-127       4294967295  100d00h        12 921600.0 MiB\n\n"
                        "REPLICA   EPOCH   RANKS    KV PAGES USED RUNNING WAITING  STATE\n"
                        "0             1     2/2           42/100       0       0  ready\n"
                        "1             9    1/64              0/0       5       6  recovering\n");
    buf_fini(&out);
}

static void test_json(void **state)
{
    struct proto_node_status m = example();
    struct buf out = {0};
    struct err err = {0};
    json_t *json = NULL, *second;

    (void)state;
    m.model = (struct proto_str){"\xff", 1}; /* not UTF-8 */
    status_json(&m, &out);
    assert_int_equal(json_parse(out.data, out.len, JSON_DEPTH_REQUEST, &json, &err), 0);
    assert_string_equal(json_string_value(json_object_get(json, "model")), "?");
    assert_false(json_is_true(json_object_get(json, "ready")));
    second = json_array_get(json_object_get(json, "processes"), 1);
    assert_int_equal(json_integer_value(json_object_get(second, "pid")), 4294967295);
    assert_int_equal(json_integer_value(json_object_get(second, "restarts")), 12);
    second = json_array_get(json_object_get(json, "replicas"), 1);
    assert_int_equal(json_array_size(json_object_get(second, "ranks")), 64);
    assert_true(json_is_true(json_array_get(json_object_get(second, "ranks"), 0)));
    assert_false(json_is_true(json_array_get(json_object_get(second, "ranks"), 63)));
    assert_string_equal(json_string_value(json_object_get(second, "reason")), "recovering");
    json_decref(json);
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_json),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
