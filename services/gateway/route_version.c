#include "services/gateway/reply.h"
#include "services/gateway/routes.h"

void route_version(struct conn *c, const char *rest)
{
    static const char body[] = "{\"version\":\"" PHALANX_VERSION "\"}";

    (void)rest;
    reply_send(
        c, &(struct reply){
               .status = 200, .type = "application/json", .data = body, .len = sizeof body - 1});
}
