"""What an operator looks at: the pages with metrics and health, the loop's lag, tasks and stacks in the log."""
