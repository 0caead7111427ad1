/* phalanx keygen: makes the key that the processes of a cluster know each other by. */
#ifndef PHALANX_LAUNCHER_KEYGEN_H
#define PHALANX_LAUNCHER_KEYGEN_H

/* argv[0] is the subcommand. Returns the exit status. */
int keygen_main(const char *program, const char *summary, int argc, char **argv);

#endif
