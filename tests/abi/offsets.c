/* tests/abi/offsets.c: prints the size of every struct of turbo/plugin.h and the offset of every
 * field. The output must equal plugin-1.0.offsets: a line that changes or vanishes breaks plugins
 * that are already built. Its fields come from offsets.h, which offsets.sh reads out of the header
 * itself, so that no field can be forgotten. */
#include <stddef.h>
#include <stdio.h>

#include "turbo/plugin.h"

#define STRUCT(t) printf("%s size %zu\n", #t, sizeof(t));
#define FIELD(t, f, decl)                                                                          \
    printf("%s.%s offset %zu size %zu: %s\n", #t, #f, offsetof(t, f), sizeof(((t *)0)->f), decl);

int main(void)
{
#include "offsets.h"
    return 0;
}
