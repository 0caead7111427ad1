/* phalanx serve: starts the processes of one node and lives as long as they do. */
#ifndef PHALANX_LAUNCHER_SERVE_H
#define PHALANX_LAUNCHER_SERVE_H

/* argv[0] is the subcommand. Returns the exit status. */
int serve_main(const char *program, const char *summary, int argc, char **argv);

#endif
