// Does with WASI what C programs do.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXPORT(name) __attribute__((export_name(#name)))

// Writes a line to standard output, and one to standard error.
EXPORT(greet) int greet(void) {
  const char* name = getenv("NAME");
  printf("hello, %s\n", name == NULL ? "nobody" : name);
  fprintf(stderr, "and goodbye\n");
  return fflush(stdout);
}

EXPORT(seconds) long long seconds(void) { return (long long)time(NULL); }

EXPORT(random_byte) int random_byte(void) {
  unsigned char byte = 0;
  if (getentropy(&byte, 1) != 0) return -1;
  return byte;
}

EXPORT(open_file) int open_file(void) {
  return fopen("/etc/passwd", "r") == NULL ? 0 : 1;
}

EXPORT(read_input) int read_input(void) {
  char byte;
  return (int)read(0, &byte, 1);
}

EXPORT(leave) void leave(int code) { exit(code); }

// A write whose buffer the caller chooses.
EXPORT(write_from) int write_from(unsigned address, unsigned bytes) {
  return (int)write(1, (const void*)address, bytes);
}

// The heap in use, across calls.
static char* kept;
EXPORT(keep) int keep(int byte) {
  kept = malloc(100000);
  if (kept == NULL) return -1;
  memset(kept, byte, 100000);
  return 0;
}
EXPORT(kept_byte) int kept_byte(int i) { return kept[i]; }

// How often a byte is in what standard input still has.
EXPORT(count_input) int count_input(int byte) {
  static char buffer[1 << 16];
  int count = 0;
  ssize_t got;
  while ((got = read(0, buffer, sizeof(buffer))) > 0) {
    for (ssize_t i = 0; i < got; ++i) count += buffer[i] == byte;
  }
  return got < 0 ? -1 : count;
}
