/* Installed set-uid root: whether the effective uid becomes 0 shows if no_new_privs holds. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	return printf("Effective uid: %lu\n", (unsigned long)geteuid()) < 0;
}
