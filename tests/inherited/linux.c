/* What this process has of all that survives fork and exec on Linux: a line per attribute, NAME: VALUE. docs/inherited.md has the
   names, in the same order. "-" is the value of what this kernel or processor has not. For tests/inherited. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct attributes { /* sched_setattr(2), with the clamps of Linux 5.3 */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t least, most;
};

static void tell(const char *name, const char *format, ...) {
    va_list rest;
    printf("%s: ", name);
    va_start(rest, format);
    vprintf(format, rest);
    va_end(rest);
    putchar('\n');
}

/* What a call returns, or that this kernel has it not; other errors are told. */
static void tell_result(const char *name, long result) {
    if (result >= 0) tell(name, "%ld", result);
    else if (errno == EINVAL || errno == ENOSYS || errno == ENODEV || errno == ENXIO || errno == EOPNOTSUPP) tell(name, "-");
    else tell(name, "error %d", errno);
}

static const char *content(const char *path) {
    static char text[65536];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (size < 0) return "-";
    while (size > 0 && (text[size - 1] == '\n' || text[size - 1] == 0)) size--;
    text[size] = 0;
    return size > 0 ? text : "-";
}

/* A line of /proc/self/status, its words one blank apart. */
static void tell_status(const char *name, const char *key) {
    char line[4096] = "", *to = line;
    const char *at = strstr(content("/proc/self/status"), key);
    if (at == NULL) return tell(name, "-");
    for (at += strlen(key); *at && *at != '\n'; at++) {
        if (*at == '\t') *to = ' ';
        else *to = *at;
        if (*to != ' ' || (to > line && to[-1] != ' ')) to++;
    }
    while (to > line && to[-1] == ' ') to--;
    *to = 0;
    tell(name, "%s", *line ? line : "none");
}

static void tell_link(const char *name, const char *path) {
    char target[4096];
    ssize_t size = readlink(path, target, sizeof target - 1);
    tell(name, "%.*s", size < 0 ? 1 : (int)size, size < 0 ? "-" : target);
}

static void tell_keyring(void) {
    char text[1024] = "";
    int32_t keys[64];
    long size = syscall(SYS_keyctl, 6, -3, text, sizeof text); /* KEYCTL_DESCRIBE */
    long held = syscall(SYS_keyctl, 11, -3, keys, sizeof keys); /* KEYCTL_READ */
    if (size < 0) return tell("session keyring", "-");
    tell("session keyring", "%s, %ld keys", text, held < 0 ? held : held / 4);
    tell("session keyring's id", "%ld", syscall(SYS_keyctl, 0, -3, 0));
}

static sigjmp_buf back;
static void jump_back(int number) { (void)number; siglongjmp(back, 1); }

static void tell_ports(void) {
#if defined(__x86_64__)
    signal(SIGSEGV, jump_back);
    if (sigsetjmp(back, 1)) return tell("I/O ports", "none");
    __asm__ volatile("inb $0x80, %%al" ::: "al");
    tell("I/O ports", "open");
#else
    tell("I/O ports", "-");
#endif
}

static void tell_descriptors(void) {
    int number;
    printf("descriptors:");
    for (number = 0; number < 65536; number++)
        if (fcntl(number, F_GETFD) >= 0) printf(" %d", number);
    putchar('\n');
}

static void tell_limits(void) {
    static const char *const names[] = { "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK",
                                         "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME" };
    struct rlimit limit;
    char name[32];
    int number;
    for (number = 0; number < 16; number++) {
        getrlimit(number, &limit);
        snprintf(name, sizeof name, "limit %s", names[number]);
        tell(name, "%ld %ld", (long)limit.rlim_cur, (long)limit.rlim_max);
    }
}

static void tell_scheduling(void) {
    struct attributes found = { 0 };
    cpu_set_t cpus;
    int mode = -1, number;

    syscall(SYS_sched_getattr, 0, &found, sizeof found, 0);
    tell("scheduling policy", "%u", found.policy);
    tell("reset on fork", "%u", (unsigned)(found.flags & 1));
    tell("nice", "%d", found.nice);
    tell("time slice", "%lu", (unsigned long)found.runtime);
    if (found.least == 0 && (found.most == 0 || found.most == 1024)) tell("utilisation clamps", "none");
    else tell("utilisation clamps", "%u %u", found.least, found.most);
    number = (int)(strrchr(content("/proc/self/autogroup"), ' ') ? atoi(strrchr(content("/proc/self/autogroup"), ' ')) : 0);
    tell("autogroup's nice", "%d", number);
    CPU_ZERO(&cpus);
    sched_getaffinity(0, sizeof cpus, &cpus);
    printf("CPU affinity:");
    for (number = 0; number < CPU_SETSIZE; number++)
        if (CPU_ISSET(number, &cpus)) printf(" %d", number);
    putchar('\n');
    tell_result("memory policy", syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0) < 0 ? -1 : mode);
    number = syscall(SYS_ioprio_get, 1, 0);
    /* Of none, what follows from nice 0 is told since Linux 5.18: best effort, 4. */
    if (number == 0 || number == 4 || number == (2 << 13 | 4)) tell("I/O priority", "none");
    else tell("I/O priority", "class %d level %d", number >> 13, number & 0x1fff);
    {
        uint64_t cookie = 0; /* PR_SCHED_CORE, PR_SCHED_CORE_GET of this thread */
        if (prctl(62, 0, 0, 0, &cookie) < 0) cookie = 0;
        tell("core scheduling cookie", cookie ? "%lx" : "none", (unsigned long)cookie);
    }
}

int main(void) {
    char *flags;
    mode_t mask = umask(0);
    long number;

    /* First, since the others open and handle things. */
    tell_descriptors();
    tell_status("blocked signals", "\nSigBlk:");
    tell_status("ignored signals", "\nSigIgn:");
    tell_status("pending signals", "\nShdPnd:");
    umask(mask);
    tell("umask", "%03o", mask);
    tell_link("working directory", "/proc/self/cwd");
    tell_link("root directory", "/proc/self/root");
    tell("session", "%s", getsid(0) == getpid() && getpgrp() == getpid() ? "own" : "another's");
    /* The fields behind the name, which is in brackets: proc(5). */
    flags = strrchr(content("/proc/self/stat"), ')');
    for (number = 0; flags && number < 5; number++) flags = strchr(flags + 1, ' ');
    tell("controlling terminal", flags && atoi(flags + 1) == 0 ? "none" : "one");
    for (number = 0; flags && number < 2; number++) flags = strchr(flags + 1, ' ');
    number = flags ? strtol(flags + 1, NULL, 10) & 0x180000 : -1; /* PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE */
    tell("I/O flusher", "%ld", number);

    tell_status("user ids", "\nUid:");
    tell_status("group ids", "\nGid:");
    tell_status("supplementary groups", "\nGroups:");
    tell_status("permitted capabilities", "\nCapPrm:");
    tell_status("effective capabilities", "\nCapEff:");
    tell_status("inheritable capabilities", "\nCapInh:");
    tell_status("ambient capabilities", "\nCapAmb:");
    tell_status("bounding set", "\nCapBnd:");
    tell_result("securebits", prctl(PR_GET_SECUREBITS));
    tell_status("no_new_privs", "\nNoNewPrivs:");
    tell_status("seccomp", "\nSeccomp:");
    tell("security label", "%s", content("/proc/self/attr/current"));
    tell_keyring();
    number = syscall(SYS_keyctl, 14, -1); /* KEYCTL_SET_REQKEY_KEYRING, and change nothing */
    tell("keyring for requested keys", number < 0 ? "-" : "%ld", number);
    tell("authority over a request", syscall(SYS_keyctl, 0, -7, 0) < 0 ? "none" : "one");
    tell_scheduling();
    tell("personality", "%x", personality(0xffffffff));
    tell_result("timer slack", prctl(PR_GET_TIMERSLACK));
    tell_result("huge pages disabled", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    tell_result("machine check policy", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
    {
        int how = -1;
        tell_result("time stamp counter", prctl(PR_GET_TSC, &how) < 0 ? -1 : how);
    }
    tell_result("memory merging", prctl(68, 0, 0, 0, 0)); /* PR_GET_MEMORY_MERGE */
    tell_result("no memory both writable and executable", prctl(66, 0, 0, 0, 0)); /* PR_GET_MDWE */
    tell_result("speculation of stores", prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0));
    tell_result("speculation of indirect branches", prctl(PR_GET_SPECULATION_CTRL, 1, 0, 0, 0));
    tell_result("flush of the L1 cache", prctl(PR_GET_SPECULATION_CTRL, 2, 0, 0, 0));
    tell_result("vector length", prctl(51, 0, 0, 0, 0)); /* PR_SVE_GET_VL */
    tell_result("streaming vector length", prctl(64, 0, 0, 0, 0)); /* PR_SME_GET_VL */
    tell_ports();
    tell_limits();
    tell("OOM score adjustment", "%s", content("/proc/self/oom_score_adj"));
    tell("core dump filter", "%s", content("/proc/self/coredump_filter"));
    tell("fault injection", "%s", content("/proc/self/make-it-fail"));
    tell("audit login", "%s", content("/proc/self/loginuid"));
    tell("audit session", "%s", content("/proc/self/sessionid"));
    prctl(PR_GET_PDEATHSIG, &number);
    tell("parent death signal", "%d", (int)number);
    {
        int reaper = -1;
        prctl(PR_GET_CHILD_SUBREAPER, &reaper);
        tell("child subreaper", "%d", reaper);
    }
    tell_result("dumpable", prctl(PR_GET_DUMPABLE));
    {
        static const char *const kinds[] = { "cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts" };
        char name[64], path[64];
        for (number = 0; number < 8; number++) {
            snprintf(name, sizeof name, "%s namespace", kinds[number]);
            snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[number]);
            tell_link(name, path);
        }
    }
    {
        char text[8192], *line = text;
        snprintf(text, sizeof text, "%s", content("/proc/self/cgroup"));
        while ((line = strchr(line, '\n')) != NULL) *line = ' ';
        tell("cgroups", "%s", text);
    }
    return 0;
}
