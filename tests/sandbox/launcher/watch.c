/* What a container with SYS_PTRACE can find of each process that comes after it, from the first moment on: for test_linux.py.

   watch FIRST COUNT FILE: for each of COUNT processes from the number FIRST on, one line: its number, 1 if FILE of the node was
   there below its root (at any look), capabilities it was first seen with, and what of its links was seen at last: root, cwd, exe, descriptors. */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char seen[8192];

static void look(int pid, const char *what) {
    char path[64], target[512];
    ssize_t size;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
    size = readlink(path, target, sizeof target - 1);
    if (size <= 0) return;
    target[size] = 0;
    if (!strncmp(target, "pipe:", 5) || !strncmp(target, "socket:", 7)) target[4] = 0;
    if (strstr(seen, target) == NULL && strlen(seen) + size + 2 < sizeof seen) strcat(strcat(seen, " "), target);
}

int main(int count, char **word) {
    int pid = atoi(word[1]), end = pid + atoi(word[2]), got, looks, fd, load = open("/proc/loadavg", O_RDONLY);
    char path[256], status[4096], *at;
    struct dirent *entry;
    ssize_t size;
    DIR *directory;

    if (count != 4) return 2;
    puts("watching");
    fflush(stdout);
    for (; pid < end; pid++) {
        do { /* some are missed: they were too quick */
            size = pread(load, status, sizeof status - 1, 0);
            status[size > 0 ? size : 0] = 0;
            at = strrchr(status, ' '); /* the last number that was given: proc_loadavg(5) */
            if (at && atoi(at) > pid) pid = atoi(at);
            snprintf(path, sizeof path, "/proc/%d/status", pid);
        } while ((fd = open(path, O_RDONLY)) < 0);
        size = read(fd, status, sizeof status - 1);
        close(fd);
        status[size > 0 ? size : 0] = 0;
        at = strstr(status, "CapPrm:");
        seen[0] = 0;
        for (got = looks = 0; looks < 20; looks++) {
            snprintf(path, sizeof path, "/proc/%d/root%s", pid, word[3]);
            got |= access(path, F_OK) == 0;
            look(pid, "root");
            look(pid, "cwd");
            look(pid, "exe");
            snprintf(path, sizeof path, "/proc/%d/fd", pid);
            if ((directory = opendir(path)) == NULL) break; /* it has ended */
            while ((entry = readdir(directory)) != NULL) {
                snprintf(path, sizeof path, "fd/%.20s", entry->d_name);
                look(pid, path);
            }
            closedir(directory);
        }
        printf("%d %d %.16s%s\n", pid, got, at ? at + 8 : "-", seen);
        fflush(stdout);
    }
    return 0;
}
