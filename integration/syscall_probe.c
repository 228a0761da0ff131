/*
 * What may a process here ask of the kernel? Every system call once, with arguments that are nonsense, in a child of
 * its own; one line each: the call and how it was answered. Two sandboxes that print the same let the same through.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void report(const char *kind, unsigned long number, int answer)
{
    if (answer > 0)
        printf("%s %lu errno %d\n", kind, number, answer);
    else
        printf("%s %lu ok\n", kind, number);
}

/* How a child ended: its errno, 0 for success. One that dies of it or does not return was let in. */
static int outcome(pid_t child)
{
    int status = 0, waited;

    for (waited = 0; waited < 300; waited++) {
        if (waitpid(child, &status, WNOHANG) == child)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
        usleep(1000);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return 0;
}

static void probe(const char *kind, unsigned long shown, long number, long a, long b, long c, long d, long e, long f)
{
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        errno = 0;
        _exit(syscall(number, a, b, c, d, e, f) == -1 ? errno : 0);
    }
    report(kind, shown, outcome(child));
}

#ifdef __x86_64__
/* The same question through the 32-bit door. */
static long call32(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
    return result;
}

static void probe32(long number)
{
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        long result = call32(number, -1, -1, -1);
        _exit(result < 0 ? (int)-result : 0);
    }
    report("i386", number, outcome(child));
}
#endif

int main(void)
{
    static const unsigned long spaces[] = {CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC,
                                           CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET};
    static const unsigned long personas[] = {0, 8, 0x20000, 0x20008, 0xffffffff, 0x40000, 0x1};
    unsigned long i;

    for (i = 0; i < 470; i++)
        probe("call", i, i, -1, -1, -1, -1, -1, -1);
    for (i = 0; i < 46; i++)
        probe("socket", i, SYS_socket, i, SOCK_RAW, 0, 0, 0, 0);
    for (i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        probe("unshare", spaces[i], SYS_unshare, spaces[i], 0, 0, 0, 0, 0);
        probe("clone", spaces[i], SYS_clone, spaces[i] | SIGCHLD, 0, 0, 0, 0, 0);
    }
    for (i = 0; i < sizeof personas / sizeof *personas; i++)
        probe("personality", personas[i], SYS_personality, personas[i], 0, 0, 0, 0, 0);
#ifdef __x86_64__
    for (i = 0; i < 470; i++)
        if (i != 1 && i != 2 && i != 190 && i != 252) /* exit, fork, vfork, exit_group */
            probe32(i);
#endif
    return 0;
}
