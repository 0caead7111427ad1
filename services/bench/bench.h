/* phalanx bench: sends requests to an OpenAI-compatible server, as sglang.bench_serving does, and
 * says how long they took. */
#ifndef PHALANX_BENCH_BENCH_H
#define PHALANX_BENCH_BENCH_H

int bench_main(const char *program, const char *summary, int argc, char **argv);

#endif
