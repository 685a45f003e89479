/*
 * Hold the namespaces of a pod: sleep until asked to end, and reap whatever is re-parented to us
 * (process 1 of a shared process namespace inherits every orphan).
 */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void)
{
	sigset_t awaited;
	int signo;

	sigemptyset(&awaited);
	sigaddset(&awaited, SIGCHLD);
	sigaddset(&awaited, SIGINT);
	sigaddset(&awaited, SIGTERM);
	/* Process 1 gets no signal that it neither handles nor blocks, so block and wait. */
	sigprocmask(SIG_BLOCK, &awaited, NULL);
	while (sigwait(&awaited, &signo) == 0) {
		if (signo != SIGCHLD)
			return 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	return 1;
}
