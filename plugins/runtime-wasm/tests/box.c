/* A userland in one module: the first word, or the name it is called by, says what to do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <time.h>
#include <dirent.h>
#include <sys/stat.h>
extern char **environ;
static char *volatile kept; /* or the compiler leaves the allocations out */
static int run(int n, char **v) {
  if (n == 0) { puts("box"); return 0; }
  char *c = v[0];
  char *a = n > 1 ? v[1] : "";
  if (!strcmp(c, "args")) { for (int i = 0; i < n; i++) puts(v[i]); return 0; }
  if (!strcmp(c, "env")) { for (char **e = environ; *e; e++) puts(*e); return 0; }
  if (!strcmp(c, "exit")) return atoi(a) > 255 ? (exit(atoi(a)), 0) : atoi(a);
  if (!strcmp(c, "err")) { fprintf(stderr, "%s\n", a); return 0; }
  if (!strcmp(c, "part")) { printf("%s", a); fflush(stdout); return 0; }
  if (!strcmp(c, "trap")) __builtin_trap();
  if (!strcmp(c, "loop")) { puts("looping"); fflush(stdout); for (;;) __asm__ volatile(""); }
  if (!strcmp(c, "sleep")) { struct timespec t = {atoi(a), 0}; puts("sleeping"); fflush(stdout); nanosleep(&t, 0); return 0; }
  if (!strcmp(c, "flood")) { for (long i = 0; i < atol(a); i++) printf("line %ld of the flood\n", i); return 0; }
  if (!strcmp(c, "cat")) {
    int fd = n > 1 ? open(a, O_RDONLY) : 0;
    if (fd < 0) { printf("%s\n", strerror(errno)); return 1; }
    char b[4096]; ssize_t r;
    while ((r = read(fd, b, sizeof b)) > 0) write(1, b, r);
    return 0;
  }
  if (!strcmp(c, "write")) {
    FILE *f = fopen(a, "w");
    if (!f) { printf("%s\n", strerror(errno)); return 1; }
    fputs(n > 2 ? v[2] : "written", f); fclose(f); return 0;
  }
  if (!strcmp(c, "ls")) { DIR *d = opendir(a); if (!d) { printf("%s\n", strerror(errno)); return 1; }
    struct dirent *e; while ((e = readdir(d))) puts(e->d_name); return 0; }
  if (!strcmp(c, "alloc")) { long got = 0; for (long i = 0; i < atol(a); i++) { char *p = malloc(1 << 20); if (!p) break; memset(p, 1, 1 << 20); kept = p; got++; }
    printf("%ld MiB\n", got); return got == atol(a) ? 0 : 3; }
  if (!strcmp(c, "tty")) { puts(isatty(0) ? "/dev/tty" : "not a tty"); return !isatty(0); }
  if (!strcmp(c, "echo")) { for (int i = 1; i < n; i++) printf("%s%s", i > 1 ? " " : "", v[i]); puts(""); return 0; }
  if (!strcmp(c, "true")) return 0;
  if (!strcmp(c, "sh") && n > 2) { /* "a; b" and "a & b": enough of a shell for the conformance kit */
    int code = 0; char *save, *part, *text = strdup(v[2]);
    if (strchr(text, '&')) text = strchr(text, '&') + 1;
    for (part = strtok_r(text, ";", &save); part; part = strtok_r(0, ";", &save)) {
      char *w[16], *s2; int k = 0; for (char *t = strtok_r(part, " ", &s2); t && k < 16; t = strtok_r(0, " ", &s2)) w[k++] = t;
      if (k) code = run(k, w);
    }
    return code;
  }
  printf("unknown: %s\n", c); return 2;
}
int main(int n, char **v) {
  char *name = strrchr(v[0], '/') ? strrchr(v[0], '/') + 1 : v[0];
  int code = strncmp(name, "box", 3) ? (v[0] = name, run(n, v)) : run(n - 1, v + 1);
  fflush(stdout); return code;
}
