/* Allocation that does not return on failure.
 *
 * For sizes the program chose itself (pools, tables, small objects). A size that a peer, a user or
 * a file names is checked against a limit first. On failure: one line on stderr, exit 70. */
#ifndef PHALANX_COMMON_MEM_H
#define PHALANX_COMMON_MEM_H

#include <stddef.h>

void *mem_alloc(size_t size);               /* uninitialised */
void *mem_zalloc(size_t size);              /* zeroed */
void *mem_array(size_t count, size_t size); /* zeroed, multiplication checked */
void *mem_resize(void *old, size_t count, size_t size);
char *mem_strdup(const char *text);
char *mem_strndup(const char *text, size_t len); /* copies len bytes, adds NUL */

#endif
