/* Chat templates: a Jinja interpreter for what real models' templates use, with limits.
 *
 * Equal to the jinja2 package with transformers' settings (trim_blocks, lstrip_blocks, tojson
 * without HTML escaping, loop controls, raise_exception, strftime_now, generation blocks). */
#ifndef PHALANX_TOKENIZER_TEMPLATE_H
#define PHALANX_TOKENIZER_TEMPLATE_H

#include "common/buf.h"
#include "common/err.h"
#include "common/json.h"

#include <stddef.h>
#include <stdint.h>

struct template; /* parsed, immutable: may be rendered from several threads at once */

struct template_limits {
    uint64_t fuel;   /* evaluation steps (default 10 million) */
    int depth;       /* nesting of calls and expressions (100) */
    size_t range;    /* elements of range() (10,000) */
    size_t output;   /* bytes of output and of any one string (8 MiB) */
    int64_t time_us; /* CPU time of the calling thread (50 ms); 0: no limit */
};
extern const struct template_limits template_limits_default;

/* Parses source. ERR_INVALID with line number and what was expected. */
int template_parse(const char *source, size_t len, struct template **out, struct err *err);
void template_free(struct template **self);

/* Renders with the variables of vars (a JSON object; order of keys is kept; borrowed). now is the
 * time for strftime_now, seconds since 1970 (UTC is used). Appends to out. Errors: ERR_INVALID when
 * the template itself raises (msg is the template's own message) or an operation fails (with the
 * line), ERR_LIMIT when a limit is passed (which one is named). */
int template_render(const struct template *t, json_t *vars, int64_t now,
                    const struct template_limits *limits, struct buf *out, struct err *err);

#endif
