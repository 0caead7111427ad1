/* phalanx chat: a conversation with a server, in the terminal or through pipes. */
#ifndef PHALANX_LAUNCHER_CHAT_H
#define PHALANX_LAUNCHER_CHAT_H

/* argv[0] is the subcommand. Returns the exit status. */
int chat_main(const char *program, const char *summary, int argc, char **argv);

#endif
