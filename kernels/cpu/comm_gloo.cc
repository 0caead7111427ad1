// Collectives over Gloo's TCP transport: a thin shim, exceptions become errors.
extern "C" {
#include "common/err.h"
#include "kernels/comm.h"
}

#include <gloo/allgather.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

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

// What Gloo wants to know of the others comes by the all-gather of the meeting: each set() is one
// round of it. Ranks set the same number of keys, and get() asks for keys of rounds that are over.
class MeetStore : public gloo::rendezvous::Store
{
  public:
    MeetStore(const struct comm_meet *meet, uint32_t size) : meet_(meet), blobs_(size)
    {
    }

    void set(const std::string &key, const std::vector<char> &data) override
    {
        std::string blob = key + '\0';
        struct err err = {};

        blob.append(data.data(), data.size());
        if (meet_->gather(meet_->ctx, blob.data(), blob.size(), blobs_.data(), &err))
            throw std::runtime_error(err.msg);
        for (const struct comm_blob &b : blobs_) {
            const char *text = static_cast<const char *>(b.data), *end = text + b.len;
            const char *value = static_cast<const char *>(b.len ? memchr(text, 0, b.len) : nullptr);

            if (!value)
                throw std::runtime_error("a rank sent no key");
            values_[std::string(text, value)] = std::vector<char>(value + 1, end);
        }
    }

    std::vector<char> get(const std::string &key) override
    {
        auto found = values_.find(key);

        if (found == values_.end())
            throw std::runtime_error("no rank has sent the key " + key);
        return found->second;
    }

    void wait(const std::vector<std::string> &keys) override
    {
        for (const std::string &key : keys)
            (void)get(key);
    }

  private:
    const struct comm_meet *meet_;
    std::vector<struct comm_blob> blobs_;
    std::map<std::string, std::vector<char>> values_;
};

static int gloo_open(uint32_t rank, uint32_t size, const struct comm_meet *meet,
                     const char *interface, double timeout_s, struct comm **out, struct err *err)
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
        MeetStore store(meet, size);

        context->setTimeout(std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1e3)));
        context->connectFullMesh(store, device);
        *out = new comm{context, size};
        return 0;
    } catch (const std::exception &e) {
        return err_set(err, ERR_PEER, "gloo: rank %u of %u could not meet the others: %s", rank,
                       size, e.what());
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
