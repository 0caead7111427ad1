/* Which interface leads to an endpoint. What this machine has beside loopback is not known here. */
#include "services/worker/route.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <ifaddrs.h>
#include <netinet/in.h>

static void test_this_machine(void **state)
{
    static const char *const local[] = {"ipc:///run/phalanx/w", "tcp://127.0.0.1:5502",
                                        "tcp://localhost:5502"};
    char name[IF_NAMESIZE];
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof local / sizeof *local; i++) {
        (void)strcpy(name, "x");
        assert_int_equal(route_interface(local[i], name, &err), 0);
        assert_string_equal(name, "");
    }
}

/* An address of ours is reached by the interface that has it, in the kernel's own words. */
static void test_own_addresses(void **state)
{
    struct ifaddrs *all = NULL;
    int found = 0;

    (void)state;
    assert_int_equal(getifaddrs(&all), 0);
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        char address[INET_ADDRSTRLEN], endpoint[64], name[IF_NAMESIZE];
        struct err err;

        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || (i->ifa_flags & IFF_LOOPBACK) ||
            !(i->ifa_flags & IFF_UP))
            continue;
        assert_non_null(
            inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)i->ifa_addr)->sin_addr,
                      address, sizeof address));
        (void)snprintf(endpoint, sizeof endpoint, "tcp://%s:5502", address);
        assert_int_equal(route_interface(endpoint, name, &err), 0);
        assert_string_equal(name, i->ifa_name);
        found++;
    }
    freeifaddrs(all);
    if (!found)
        skip();
}

static void test_nowhere(void **state)
{
    char name[IF_NAMESIZE];
    struct err err;

    (void)state;
    assert_int_equal(route_interface("tcp://no-such-host.invalid:5502", name, &err), ERR_PEER);
    assert_non_null(strstr(err.msg, "no-such-host.invalid"));
    assert_int_equal(route_interface("tcp://host", name, &err), ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_this_machine),
        cmocka_unit_test(test_own_addresses),
        cmocka_unit_test(test_nowhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
