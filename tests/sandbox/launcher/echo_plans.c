/* Reads plans from stdin, and says how a launcher reads them: for test_plan.py.

   In: uint32 descriptors, uint32 size, the plan. Out: uint32 size, and the plan written anew from what was read; size 0 for no
   plan. The plan lies at the very end of a page, so that a read behind it ends this process. */

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "plan.h"

static int move(int fd, char *at, size_t size, int out) {
    ssize_t done;
    for (; size > 0; at += done, size -= done)
        if ((done = out ? write(fd, at, size) : read(fd, at, size)) <= 0) return -1;
    return 0;
}

/* The slots become offsets again: only what plan_read found may say which. */
static void write_anew(char *plan) {
    const struct plan_header *header = (void *)plan;
    const struct plan_step *step = plan_first(plan);
    uint64_t *slot;
    uint32_t number, text;

    for (number = 0; number < header->steps; number++, step = plan_next(step))
        for (slot = (uint64_t *)plan_texts(step), text = 0; text < step->texts; text++)
            if (slot[text]) slot[text] -= (uintptr_t)step;
}

int main(void) {
    uint32_t head[2], size;
    size_t page = sysconf(_SC_PAGESIZE), room;
    char *all, *plan;

    while (move(0, (char *)head, sizeof head, 0) == 0) {
        room = (head[1] + page - 1) / page * page;
        all = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED || mprotect(all + room, page, PROT_NONE) != 0) return 1;
        plan = all + room - head[1];
        if (move(0, plan, head[1], 0) != 0) return 1;
        size = head[1] % 8 == 0 && plan_read(plan, head[1], head[0]) == 0 ? head[1] : 0;
        if (size) write_anew(plan);
        if (move(1, (char *)&size, sizeof size, 1) != 0 || (size && move(1, plan, size, 1) != 0)) return 1;
        munmap(all, room + page);
    }
    return 0;
}
