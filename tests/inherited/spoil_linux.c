/* Sets all that survives fork and exec on Linux to what no container should get, and executes its arguments, or NEXT without any:
   so a launcher or a daemon is started as by a shell, service manager or login that left things behind. For tests/inherited. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef NEXT
#define NEXT ""
#endif

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0) perror(path);
    if (fd >= 0) close(fd);
}

static void spoil_limits(int hard_too) {
    struct rlimit limit;
    int number;
    for (number = 0; number < 16; number++) {
        getrlimit(number, &limit);
        switch (number) {
        case RLIMIT_CPU: limit.rlim_cur = 1000000; break;
        case RLIMIT_NOFILE: limit.rlim_cur = 4000; break;
        case RLIMIT_STACK: limit.rlim_cur = 4 << 20; break;
        case RLIMIT_CORE: limit.rlim_cur = limit.rlim_max ? 1 << 20 : 0; break;
        case RLIMIT_MEMLOCK: case RLIMIT_MSGQUEUE: case RLIMIT_SIGPENDING: case RLIMIT_NPROC: limit.rlim_cur = 4096; break;
        case RLIMIT_NICE: case RLIMIT_RTPRIO: if (hard_too) limit.rlim_cur = limit.rlim_max = 3; break;
        default: limit.rlim_cur = 1l << 45; break;
        }
        if (hard_too && number == RLIMIT_CORE) limit.rlim_max = limit.rlim_cur;
        if (hard_too && number == RLIMIT_NOFILE) limit.rlim_max = 300000;
        if (setrlimit(number, &limit) < 0) perror("setrlimit");
    }
}

static void spoil_capabilities(int *may_raise) {
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2];
    syscall(SYS_capget, &header, data);
    *may_raise = data[0].effective >> CAP_SYS_RESOURCE & 1;
    data[0].inheritable |= 1 << CAP_NET_RAW;
    syscall(SYS_capset, &header, data);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0);
    prctl(PR_SET_SECUREBITS, 1 << 2 | 1 << 6); /* NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE */
}

int main(int count, char **argv) {
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
        uint32_t least, most;
    } schedule = { 56, SCHED_BATCH, 0x60, 1, 0, 100000000, 0, 0, 100, 200 };
    unsigned long node = 1;
    gid_t group = 4242;
    sigset_t blocked;
    cpu_set_t cpus;
    int may_raise, fd;

    spoil_capabilities(&may_raise);
    spoil_limits(may_raise);
    setsid();
    put("/proc/self/autogroup", "1");
    if (syscall(SYS_sched_setattr, 0, &schedule, 0) < 0) { /* a kernel without clamps */
        schedule.flags = 0;
        schedule.size = 48;
        if (syscall(SYS_sched_setattr, 0, &schedule, 0) < 0) perror("sched_setattr");
    }
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    syscall(SYS_set_mempolicy, 2, &node, 64);
    syscall(SYS_ioprio_set, 1, 0, 3 << 13);
    prctl(62, 1, 0, 0, 0); /* PR_SCHED_CORE_CREATE */
    syscall(SYS_keyctl, 1, "spoiled");
    syscall(SYS_add_key, "user", "secret of the node", "x", 1, -3);
    syscall(SYS_keyctl, 14, 4); /* KEY_REQKEY_DEFL_USER_KEYRING */
    personality(ADDR_NO_RANDOMIZE);
    umask(077);
    signal(SIGHUP, SIG_IGN);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);
    signal(SIGRTMIN + 5, SIG_IGN);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGRTMIN + 6);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    prctl(PR_SET_TIMERSLACK, 1000000);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
    prctl(57, 1, 0, 0, 0); /* PR_SET_IO_FLUSHER */
    prctl(67, 1, 0, 0, 0); /* PR_SET_MEMORY_MERGE */
    prctl(PR_SET_SPECULATION_CTRL, 0, PR_SPEC_DISABLE, 0, 0);
    prctl(PR_SET_SPECULATION_CTRL, 1, PR_SPEC_DISABLE, 0, 0);
    prctl(PR_SET_SPECULATION_CTRL, 2, PR_SPEC_ENABLE, 0, 0);
    prctl(50, 1 << 17 | 16, 0, 0, 0); /* PR_SVE_SET_VL, PR_SVE_VL_INHERIT */
    prctl(63, 1 << 17 | 16, 0, 0, 0); /* PR_SME_SET_VL */
#if defined(__x86_64__)
    syscall(SYS_ioperm, 0x80, 1, 1);
#endif
    put("/proc/self/oom_score_adj", "500");
    put("/proc/self/coredump_filter", "0x3");
    put("/proc/self/make-it-fail", "1");
    put("/proc/self/loginuid", "1000");
    setgroups(1, &group);
    fd = open("/etc/passwd", O_RDONLY);
    dup2(fd, 200);
    if (count > 1) {
        execv(argv[1], argv + 1);
    } else {
        if (chdir("/usr") < 0) perror("/usr");
#if defined(__x86_64__)
        prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0); /* C libraries need it */
#endif
        execv(NEXT, argv);
    }
    perror(count > 1 ? argv[1] : NEXT);
    return 1;
}
