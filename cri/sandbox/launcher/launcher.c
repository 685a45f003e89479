/* The launcher: executes plans (docs/launch.md), and nothing else. On Linux one process per pod, started by its warden; on
   FreeBSD one for each plan, which becomes what the plan says (freebsd.c has the reason).

   Descriptor 3 is a SOCK_SEQPACKET socket, over which the warden sends plans, each with its descriptors. For each one a porter
   is forked, which does the steps up to FORK, and forks the newcomer, which does the others and becomes the program. What
   becomes of them, they tell the warden themselves, over the plan's first descriptor. The launcher waits for nobody.
   (On FreeBSD descriptor 3 is a plan, and the process is porter and newcomer.)

   It parses, allocates and decides nothing: plan.h checks a plan once, in the memory that it was received into. Every function
   that asks something of the kernel returns what the kernel returns, or -errno. linux.c and freebsd.c are parts of
   this file; what they have in common with it stands first in each. */

#include "plan.h"

enum { CONTROL = 3, REPORT = FIRST_DESCRIPTOR };
enum { LARGE = 0x4c495247 };    /* CRIG: the plan is in the last descriptor, a file of this many bytes */
enum { PACKET = 32 * 1024 };    /* bytes of the largest plan that comes in the message itself */
enum { LOST = 127 };            /* exit status of a process that did not become its program; what it was, the report says */

/* What is told of a launch: on the report, 16 bytes. */
enum { SENT = 1, BORN = 2, FAILED = 3 };
struct record {
    int32_t kind, step, error, pid;
};
struct large {
    uint32_t magic, size;
};

#if defined(__linux__)
#define RESIDENT 1
static char *title; /* argv[0], in the memory that ps looks at */
#include "linux.c"
#elif defined(__FreeBSD__)
#define RESIDENT 0
#include "freebsd.c"
#endif

/* The container's own: its root may change owner and mode of what it has open, and may have put anything there. */
static long open_null(void) {
    long fd = sys_open("/dev/null", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0);
    if (fd < 0 || sys_is_device(fd)) return fd;
    sys_close(fd);
    return -ENODEV;
}

/* The standard streams. They were closed, and what is given lies above FIRST_DESCRIPTOR, so nothing is in the way: what is
   opened here gets the very number that is wanted. */
static long use_streams(const int64_t *integer) {
    long result, from;
    int number;

    for (number = 0; number < 3; number++) {
        from = integer[number] >= 0 ? integer[number] : open_null();
        if (from < 0) return from;
        if (from != number) {
            result = sys_dup_to(from, number, 0);
            if (integer[number] < 0) sys_close(from);
            if (result < 0) return result;
        } else if ((result = sys_keep_open(number)) < 0) {
            return result;
        }
        /* The user may want to open /dev/stdout by name. */
        if (sys_is_pipe(number) && (result = sys_fchown(number, integer[3])) < 0) return result;
    }
    return 0;
}

/* Make a directory and those above it. The path is the plan's own memory. */
static long make_directories(char *path) {
    char *at;

    for (at = path + 1; *at; at++) {
        if (*at != '/') continue;
        *at = 0;
        sys_mkdir(path, 0755); /* whether that was needed, the last one tells */
        *at = '/';
    }
    return sys_mkdir(path, 0755);
}

static long change_directory(const char *path, int make) {
    long result = sys_chdir(path);

    if (result == -ENOENT && make && path[0]) {
        result = make_directories((char *)path);
        if (result == 0 || result == -EEXIST) result = sys_chdir(path);
    }
    return result < 0 ? result : sys_see_that_inside();
}

static long write_file(const char *path, const char *content, int64_t tolerated) {
    long fd = sys_open(path, O_WRONLY | O_CLOEXEC, 0), result = fd;

    if (fd >= 0) {
        result = sys_write(fd, content, plan_length(content));
        sys_close(fd);
    }
    if (tolerated == TOLERATE_ALL && result < 0) return 0;
    if (tolerated == TOLERATE_NOT_YET && (result == -ENOENT || result == -ENODEV || result == -ENOSPC)) return 0;
    return result;
}

static long execute(const struct plan_step *step) {
    const char *const *text = plan_texts(step), *const *candidate;
    long result, failure = -ENOENT;

    for (candidate = text; *candidate; candidate++) {
        result = sys_execute(*candidate, text + step->integer[0], text + step->integer[1]);
        /* A directory without permission, or none at all, does not end the search: execvp(3). */
        if (result != -ENOENT && result != -ENOTDIR && failure != -EACCES) failure = result;
        if (result != -ENOENT && result != -ENOTDIR && result != -EACCES) break;
    }
    return failure;
}

/* Tell the warden. Whether it hears does not matter: one that does not has died, and takes along what it has started. */
static void tell(int kind, int step, long error, long pid, int descriptor) {
    struct record record = { kind, step, error, pid };
    if (descriptor < 0) sys_tell(REPORT, &record, sizeof record);
    else sys_send(REPORT, &record, sizeof record, descriptor);
}

#if RESIDENT
/* Go on as the newcomer. The porter has done its part. */
static long go_on_in_child(int step) {
    long pid = sys_fork_newcomer();

    if (pid > 0) {
        tell(BORN, step, 0, pid, -1);
        sys_exit(0);
    }
    return pid;
}
#else
/* It was born for this plan. */
static long go_on_in_child(int step) {
    tell(BORN, step, 0, sys_own_pid(), -1);
    return 0;
}
#endif

static long take(const struct plan_step *step, int number) {
    const int64_t *integer = step->integer;
    const char *const *text = plan_texts(step);

    switch (step->operation) {
    case OP_FORK: return go_on_in_child(number);
    case OP_BORN_IN: return number == 0 ? 0 : -EINVAL; /* the launcher has done it */
    case OP_SEND: tell(SENT, number, 0, 0, integer[0]); return 0;
    case OP_CLOSE:
        if (integer[0] >= 0) return sys_close(integer[0]);
        sys_close_range(3, REPORT - 1);
        return sys_close_range(REPORT + 1, ~0u);
    case OP_WRITE: return write_file(text[0], text[1], integer[0]);
    case OP_RESOURCE_LIMIT: return sys_limit(integer[0], integer[1], integer[2]);
    case OP_PRIORITY: return sys_priority(integer[0]);
    case OP_UMASK: sys_umask(integer[0]); return 0;
    case OP_SIGNALS: return sys_reset_signals();
    case OP_SESSION: return sys_session();
    case OP_STREAMS: return use_streams(integer);
    case OP_TERMINAL: return sys_terminal(integer[0], integer[1], integer[2], integer[3], integer[4]);
    case OP_CONTROLLING_TERMINAL: return sys_take_terminal(0);
    case OP_WORKING_DIRECTORY: return change_directory(text[0], integer[0]);
    case OP_GROUPS: return sys_groups(integer[0], (const uint32_t *)text[0]);
    case OP_IDS: return sys_ids(integer[0], integer[1]);
    case OP_NO_NEW_PRIVILEGES: return sys_no_new_privileges();
    case OP_DEATH_SIGNAL: return sys_death_signal(integer[0]);
    case OP_EXECUTE: return execute(step);
    default: return take_own(step->operation, integer, text, step->texts);
    }
}

/* Never returns. A plan without EXECUTE ends with its steps. */
_Noreturn static void follow_plan(const struct plan_header *plan) {
    const struct plan_step *step = plan_first(plan);
    uint32_t number;
    long result;

    for (number = 0; number < plan->steps; number++, step = plan_next(step)) {
        result = take(step, number);
        if (result < 0) {
            tell(FAILED, number, -result, 0, -1);
            sys_exit(LOST);
        }
    }
    sys_exit(0);
}

#if RESIDENT
/* In the porter: the plan's descriptors get the numbers by which it calls them, and nothing else stays open. What was received
   has the lowest free numbers, and so do those of a process that never keeps any: all below FIRST_DESCRIPTOR. */
_Noreturn static void follow_with(const struct plan_header *plan, const int *descriptors, unsigned int count) {
    unsigned int number;

    for (number = 0; number < count; number++)
        if (sys_dup_to(descriptors[number], FIRST_DESCRIPTOR + number, O_CLOEXEC) < 0) sys_exit(LOST);
    sys_close_range(0, FIRST_DESCRIPTOR - 1);
    follow_plan(plan);
}

static void refuse(int report, int step, long error) {
    struct record record = { FAILED, step, error, 0 };
    sys_send(report, &record, sizeof record, -1);
}

/* Where the porter is to be born: the number of the descriptor among those that came with the plan, or -1. */
static int birthplace(const struct plan_header *plan, unsigned int count) {
    const struct plan_step *first = plan_first(plan);

    if (plan->steps == 0 || first->operation != OP_BORN_IN) return -1;
    return first->integer[0] > FIRST_DESCRIPTOR && first->integer[0] < FIRST_DESCRIPTOR + count ? first->integer[0] - FIRST_DESCRIPTOR : 0;
}

static void launch(void *message, size_t size, const int *descriptors, unsigned int count) {
    const struct large *large = message;
    size_t mapped = 0;
    void *plan = message;
    int place;
    long pid;

    if (count == 0) return; /* nobody to tell */
    if (size == sizeof *large && large->magic == LARGE && count > 1) {
        size = mapped = large->size;
        plan = sys_map(mapped, descriptors[--count]);
        if (plan == NULL) return refuse(descriptors[0], -1, ENOMEM);
    }
    if (plan_read(plan, size, count) != 0) {
        refuse(descriptors[0], -1, EINVAL);
    } else {
        place = birthplace(plan, count);
        pid = place < 0 ? sys_fork_porter() : sys_fork_porter_in(descriptors[place]);
        if (pid == 0) follow_with(plan, descriptors, count);
        if (pid < 0) refuse(descriptors[0], place < 0 ? -1 : 0, -pid);
    }
    if (mapped) sys_unmap(plan, mapped);
}

/* Each message is received into memory of its own, so that no plan is left for the next porter to inherit. */
_Noreturn static void serve(void) {
    int descriptors[PLAN_DESCRIPTORS + 1];
    unsigned int count;
    long size;
    void *message;

    for (;;) {
        message = sys_map(PACKET, -1);
        if (message == NULL) sys_exit(1);
        size = sys_receive(CONTROL, message, PACKET, descriptors, PLAN_DESCRIPTORS + 1, &count);
        if (size == -EINTR) size = 0;
        else if (size <= 0 && count == 0) sys_exit(size < 0); /* the warden has ended */
        else launch(message, size, descriptors, count);
        while (count > 0) sys_close(descriptors[--count]);
        sys_unmap(message, PACKET);
    }
}

_Noreturn void launcher_main(char *name) {
    title = name;
    if (sys_begin() < 0) sys_exit(1);
    serve();
}
#else
/* Descriptor 3 is the plan, and what comes with it has its numbers already. */
_Noreturn void launcher_main(void) {
    long size = sys_size(CONTROL);
    struct plan_header *plan = size < (long)sizeof *plan ? NULL : sys_map(size, CONTROL);

    if (plan == NULL || plan->descriptors == 0 || plan_read(plan, size, plan->descriptors) != 0) {
        tell(FAILED, -1, EINVAL, 0, -1);
        sys_exit(LOST);
    }
    sys_begin(plan->descriptors);
    follow_plan(plan);
}
#endif
