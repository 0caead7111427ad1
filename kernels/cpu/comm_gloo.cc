// Collectives over Gloo's TCP transport: a thin shim, exceptions become errors.
extern "C" {
#include "common/err.h"
#include "kernels/comm.h"
}

#include <gloo/allgather.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <memory>

struct comm {
    std::shared_ptr<gloo::rendezvous::Context> context;
    uint32_t size;
};

static std::shared_ptr<gloo::transport::Device> device_on(const char *interface)
{
    gloo::transport::tcp::attr attr("127.0.0.1");

    if (interface && *interface) {
        attr.hostname.clear();
        attr.iface = interface;
    }
    return gloo::transport::tcp::CreateDevice(attr);
}

static int gloo_open(uint32_t rank, uint32_t size, const char *store, const char *interface,
                     double timeout_s, struct comm **out, struct err *err)
{
    std::shared_ptr<gloo::transport::Device> device;

    try {
        device = device_on(interface);
    } catch (const std::exception &e) {
        return err_set(err, ERR_INVALID, "gloo: --dist-interface %s can not be used: %s", interface,
                       e.what());
    }
    try {
        auto context = std::make_shared<gloo::rendezvous::Context>(static_cast<int>(rank),
                                                                   static_cast<int>(size));
        gloo::rendezvous::FileStore files(store);

        context->setTimeout(std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1e3)));
        context->connectFullMesh(files, device);
        *out = new comm{context, size};
        return 0;
    } catch (const std::exception &e) {
        return err_set(err, ERR_PEER, "gloo: rank %u of %u could not meet the others in %s: %s",
                       rank, size, store, e.what());
    }
}

static int gloo_all_gather(struct comm *c, const void *send, size_t bytes, void *recv,
                           struct err *err)
{
    try {
        gloo::AllgatherOptions options(c->context);

        options.setInput(static_cast<char *>(const_cast<void *>(send)), bytes);
        options.setOutput(static_cast<char *>(recv), bytes * c->size);
        gloo::allgather(options);
        return 0;
    } catch (const std::exception &e) {
        return err_set(err, ERR_PEER, "gloo: all-gather of %zu bytes: %s", bytes, e.what());
    }
}

static void gloo_close(struct comm **self)
{
    delete *self;
    *self = nullptr;
}

extern "C" {
extern const struct comm_kind comm_gloo;
const struct comm_kind comm_gloo = {"gloo", gloo_open, gloo_all_gather, gloo_close};
}
