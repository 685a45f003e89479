/* Makes a system call by number, and prints what came of it: 0, or the error's number. call NUMBER [ARGUMENT...] */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words) {
    long argument[7] = { 0 };
    int at;

    for (at = 1; at < count && at < 8; at++) argument[at - 1] = strtoul(words[at], NULL, 0);
    errno = 0;
    syscall(argument[0], argument[1], argument[2], argument[3], argument[4], argument[5], argument[6]);
    printf("%d\n", errno);
    return 0;
}
