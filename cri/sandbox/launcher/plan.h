/* Plans, as a launcher reads them: docs/launch.md says what they are for, operations.py writes them.

   A plan is a header and its steps, all of it aligned to 8 bytes, in the byte order of the machine. A step has integers and
   texts. A text is its length, its bytes and a NUL, and is found by a slot in its step, which holds its offset from the
   beginning of the step, or 0 for no text: so a step's bytes are the same in every plan. plan_read checks everything once and turns the offsets into pointers, so a step's
   slots are an argv as execve takes it: the last one is always 0. Nothing is copied, and nothing is checked later.

   Needs no C library. */

#ifndef PLAN_H
#define PLAN_H

#include <stddef.h>
#include <stdint.h>

#define PLAN_MAGIC 0x4c495243u /* CRIL */
#define PLAN_MAX (64u << 20)
#define PLAN_DESCRIPTORS 32     /* that come with a plan */
#define FIRST_DESCRIPTOR 64    /* the number of the first descriptor that comes with a plan, the report */

/* name, number, integers, texts at least and at most. The same as in operations.py. */
#define OPERATIONS(OPERATION)                                                                                            \
    /* on every system */                                                                                               \
    OPERATION(FORK, 1, 0, 0, 0)                                                                                         \
    OPERATION(SEND, 2, 1, 0, 0)             /* descriptor */                                                            \
    OPERATION(CLOSE, 3, 1, 0, 0)            /* descriptor, or -1: all but 0, 1, 2 and the report */                      \
    OPERATION(WRITE, 4, 1, 2, 2)            /* tolerated; path, content */                                              \
    OPERATION(RESOURCE_LIMIT, 5, 3, 0, 0)   /* resource, soft, hard */                                                  \
    OPERATION(PRIORITY, 6, 1, 0, 0)         /* nice */                                                                  \
    OPERATION(UMASK, 7, 1, 0, 0)            /* mask */                                                                  \
    OPERATION(SIGNALS, 8, 0, 0, 0)                                                                                      \
    OPERATION(SESSION, 9, 0, 0, 0)                                                                                      \
    OPERATION(STREAMS, 10, 4, 0, 0)         /* stdin, stdout, stderr (-1: /dev/null), owner of pipes */                 \
    OPERATION(TERMINAL, 11, 5, 0, 0)        /* descriptor, the other end's, owner, rows, columns */                     \
    OPERATION(CONTROLLING_TERMINAL, 12, 0, 0, 0)                                                                        \
    OPERATION(WORKING_DIRECTORY, 13, 1, 1, 1) /* whether to make it; path */                                            \
    OPERATION(GROUPS, 14, 1, 1, 1)          /* how many; their ids, uint32 each */                                      \
    OPERATION(IDS, 15, 2, 0, 0)             /* user, group */                                                           \
    OPERATION(NO_NEW_PRIVILEGES, 16, 0, 0, 0)                                                                           \
    OPERATION(DEATH_SIGNAL, 17, 1, 0, 0)    /* signal */                                                                \
    OPERATION(EXECUTE, 18, 2, 4, PLAN_MAX)  /* where argv and environment begin; candidates, 0, argv, 0, environment, 0 */ \
    /* Linux: the process */                                                                                            \
    OPERATION(ENTER, 32, 2, 0, 0)           /* descriptor, kind of namespace */                                         \
    OPERATION(LEAVE, 33, 1, 0, 0)           /* namespaces to have anew */                                               \
    OPERATION(JOIN_KEYRING, 34, 1, 0, 0)    /* permissions of the new one */                                                    \
    OPERATION(SCHEDULER, 35, 2, 0, 0)       /* policy, nice */                                                          \
    OPERATION(AFFINITY, 36, 0, 1, 1)        /* mask of CPUs (Linux; FreeBSD has all) */                                 \
    OPERATION(IO_PRIORITY, 37, 1, 0, 0)     /* class and level */                                                       \
    OPERATION(MEMORY_POLICY, 38, 0, 0, 0)   /* the default */                                                           \
    OPERATION(PERSONALITY, 39, 1, 0, 0)     /* persona */                                                               \
    OPERATION(CONTROL, 40, 6, 0, 0)         /* prctl's five, tolerated */                                               \
    OPERATION(BOUNDING, 41, 1, 0, 0)        /* capabilities to drop */                                                  \
    OPERATION(CAPABILITIES, 42, 3, 0, 0)    /* effective, permitted, inheritable */                                     \
    OPERATION(SECCOMP, 43, 2, 1, 1)         /* flags, instructions; program */                                          \
    OPERATION(REAP, 44, 0, 1, 1)            /* name: be the init of a process namespace, and nothing else any more */   \
    OPERATION(BORN_IN, 48, 1, 0, 0)         /* cgroup of version 2: the first step, which the launcher takes by its fork */  \
    /* Linux: the tree */                                                                                               \
    OPERATION(OPEN, 64, 2, 1, 1)            /* descriptor to get, flags; path on the node */                            \
    OPERATION(OPEN_IN, 65, 3, 1, 1)         /* descriptor to get, root, flags; path */                                  \
    OPERATION(CLONE, 66, 2, 1, 1)           /* descriptor to get, flags of open_tree; path on the node */               \
    OPERATION(CLONE_OF, 67, 3, 0, 0)        /* descriptor to get, of what, flags of open_tree */                        \
    OPERATION(FILESYSTEM, 68, 2, 1, PLAN_MAX) /* descriptor to get, attributes; type, options (KEY or KEY=VALUE) */     \
    OPERATION(ATTRIBUTES, 69, 4, 0, 0)      /* mount, recursively, attributes to set, propagation */                    \
    OPERATION(MOUNT, 70, 2, 4, 4)           /* flags, tolerated; source, target, type, data */                          \
    OPERATION(UNMOUNT, 71, 1, 1, 1)         /* flags; target */                                                         \
    OPERATION(ATTACH, 73, 3, 1, 1)          /* mount, root, how (ATTACH_*); path */                                     \
    OPERATION(DIRECTORY, 74, 2, 1, 1)       /* directory, mode; name */                                                 \
    OPERATION(NODE, 75, 5, 1, 1)            /* directory, mode, device, user, group; name */                            \
    OPERATION(LINK, 76, 1, 2, 2)            /* directory; what it says, name */                                         \
    OPERATION(MASK, 77, 3, 1, 1)            /* root, what hides a file, attributes of what hides a directory; path */   \
    OPERATION(RESTRICT, 78, 2, 1, 1)        /* root, attributes to set; path */                                         \
    OPERATION(MAKE_DIRECTORY, 79, 1, 1, 1)  /* root; path */                                                            \
    OPERATION(WORK_IN, 80, 0, 1, 1)         /* path on the node */                                                      \
    OPERATION(PIVOT, 81, 1, 0, 0)           /* root */                                                                  \
    OPERATION(COPY, 82, 3, 1, 1)            /* descriptor to get, root (a jail's is its own), most bytes; path of a file, or of nothing */ \
    OPERATION(OWN_DEVICE, 83, 4, 0, 0)      /* mount, first of the container's own devices, how many, attributes */     \
    /* FreeBSD */                                                                                                       \
    OPERATION(UNTRACEABLE, 96, 0, 0, 0)                                                                                 \
    OPERATION(ROUTING_TABLE, 97, 1, 0, 0)   /* number */                                                                \
    OPERATION(JAIL, 98, 1, 0, 0)            /* jid */                                                                   \
    OPERATION(PROCESS_CONTROL, 99, 3, 0, 0) /* command of procctl, value, tolerated */                                  \
    OPERATION(LOGIN_NAME, 100, 0, 1, 1)     /* name */                                                                  \
    OPERATION(LOGIN_CLASS, 101, 0, 1, 1)    /* class */                                                                 \
    OPERATION(REALTIME_PRIORITY, 102, 2, 0, 0) /* class, level */                                                       \
    OPERATION(SOCKET, 103, 4, 0, 0)         /* descriptor to get, family, type, protocol */                             \
    OPERATION(SYSCTL, 104, 1, 1, 2)         /* descriptor to get: a file of the value before; name, new value */        \
    OPERATION(AUDIT, 105, 0, 0, 0)          /* nobody's session */

enum operation {
#define OPERATION(name, number, integers, least, most) OP_##name = number,
    OPERATIONS(OPERATION)
#undef OPERATION
};

enum { TOLERATE_NOTHING, TOLERATE_NOT_YET, TOLERATE_ALL };
enum {
    ATTACH_DIRECTORY = 1,       /* make a directory where there is nothing to mount on, else a file */
    ATTACH_MAKE = 2,            /* make it at all */
    ATTACH_IF_FOUND = 4,        /* nothing there: nothing to do */
    ATTACH_UNLESS_MOUNTED = 8,  /* something of this plan is mounted there: that wins */
    ATTACH_VISIBLE = 16,        /* refuse the root, and what lies in /proc: links of an image may lead there */
    ATTACH_KEEP = 32,           /* the mount stays open */
    ATTACH_SAME_DEVICE = 64,    /* only over a node of the same device that is another file */
    ATTACH_LIKE = 128,          /* a directory if the mount's root is one */
};

struct plan_header {
    uint32_t magic, size, steps, descriptors;
};
struct plan_step {
    uint32_t operation, size, integers, texts;
    int64_t integer[];
};

static inline const struct plan_step *plan_first(const void *plan) {
    return (const void *)((const char *)plan + sizeof(struct plan_header));
}
static inline const struct plan_step *plan_next(const struct plan_step *step) {
    return (const void *)((const char *)step + step->size);
}
static inline const char *const *plan_texts(const struct plan_step *step) {
    return (const void *)(step->integer + step->integers);
}
static inline uint64_t plan_length(const char *text) {
    return ((const uint64_t *)text)[-1];
}

/* What a step's arguments must be beyond their number. Texts may be missing in a list only. */
static inline int plan_arguments_fit(const struct plan_step *step) {
    const char *const *text = plan_texts(step);
    const int64_t *integer = step->integer;
    uint32_t number;

    if (step->operation == OP_EXECUTE)
        return 0 < integer[0] && integer[0] < integer[1] && integer[1] < step->texts && text[step->texts - 1] == NULL && text[integer[0]] != NULL &&
               text[integer[0] - 1] == NULL && text[integer[1] - 1] == NULL;
    for (number = 0; number < step->texts; number++)
        if (text[number] == NULL) return 0;
    if (step->operation == OP_GROUPS) return (uint64_t)integer[0] <= PLAN_MAX && plan_length(text[0]) == 4 * (uint64_t)integer[0];
    if (step->operation == OP_SECCOMP) return (uint64_t)integer[1] <= 0xffff && plan_length(text[0]) == 8 * (uint64_t)integer[1];
    return 1;
}

/* (Unsigned: fewer texts than the least are very many more.) */
static inline int plan_shape_fits(const struct plan_step *step) {
    switch (step->operation) {
#define OPERATION(name, number, count, least, most) \
    case number: return step->integers == count && step->texts - least <= most - least;
        OPERATIONS(OPERATION)
#undef OPERATION
    }
    return 0;
}

/* The texts of a step, whose slots are known to lie in it: each where the one before it ends. 0 if they are sound. */
static inline int plan_read_texts(struct plan_step *step) {
    uint64_t *slot = (uint64_t *)(step->integer + step->integers);
    char *base = (char *)step;
    uint64_t at = (char *)(slot + step->texts + 1) - base, end = step->size;
    uint64_t length, next;
    uint32_t number;

    if (slot[step->texts] != 0) return -1;
    for (number = 0; number < step->texts; number++) {
        if (slot[number] == 0) continue;
        if (slot[number] != at + 8 || end - at < 16) return -1;
        length = *(uint64_t *)(base + at);
        if (length >= end - at - 8) return -1; /* there is a NUL behind it */
        next = (at + 8 + length + 8) & ~7ull;
        for (at += 8 + length; at < next; at++)
            if (base[at] != 0) return -1;
        slot[number] = (uintptr_t)(base + slot[number]);
    }
    return at == end ? 0 : -1;
}

/* Makes a plan of `size` bytes ready, in place; they are aligned, and the caller's alone. 0, or -1 for what is no plan. */
static inline int plan_read(void *bytes, size_t size, unsigned int descriptors) {
    char *plan = bytes;
    struct plan_header *header = bytes;
    struct plan_step *step;
    uint64_t at = sizeof *header;
    uint32_t number;

    if (size < sizeof *header || size > PLAN_MAX || header->magic != PLAN_MAGIC || header->size != size) return -1;
    if (header->descriptors != descriptors) return -1;
    for (number = 0; number < header->steps; number++) {
        if (size - at < sizeof *step) return -1;
        step = (void *)(plan + at);
        if (step->size % 8 != 0 || step->size > size - at || step->texts > step->size / 8) return -1;
        if (!plan_shape_fits(step)) return -1;
        if (step->size < sizeof *step + 8 * ((uint64_t)step->integers + step->texts + 1)) return -1;
        if (plan_read_texts(step) != 0 || !plan_arguments_fit(step)) return -1;
        at += step->size;
    }
    return at == size ? 0 : -1;
}

#endif
