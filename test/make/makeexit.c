/* A GNU make extension with one function, $(exit-with N): make ends with exit code N. By itself make turns every
 * failure into 2, and make demo-run shall end as the command in it did. */
#include <gnumake.h>
#include <stdio.h>
#include <stdlib.h>

int plugin_is_GPL_compatible;

static char *exit_with(const char *name, unsigned int argc, char **argv) {
  (void)name;
  fflush(stdout);
  exit(argc > 0 ? atoi(argv[0]) : 0);
}

int makeexit_gmk_setup(void) {
  gmk_add_function("exit-with", exit_with, 1, 1, GMK_FUNC_DEFAULT);
  return 1;
}
