/* tests/fuzz/driver.c: runs a fuzz target on mutations of its seeds: FUZZ_SECONDS of them, or FUZZ_RUNS, from
 * FUZZ_SEED on, without coverage: what any compiler can build. The input that is running lies in the file that it prints
 * when it is killed. libfuzzer.c is the other driver. */
#include "driver.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_SEEDS 64
#define MAX_SIZE (1u << 20)

static uint64_t state;
static uint8_t input[MAX_SIZE];
static size_t input_size;
static char crash[64];

static uint32_t noise(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void on_signal(int sig)
{
    FILE *f = fopen(crash, "wb");
    if (f) {
        fwrite(input, 1, input_size, f);
        fclose(f);
    }
    fprintf(stderr, "signal %d; the input is in %s\n", sig, crash);
    _exit(99);
}

static void insert(size_t at, const uint8_t *from, size_t n)
{
    if (input_size + n > MAX_SIZE)
        return;
    memmove(input + at + n, input + at, input_size - at);
    memcpy(input + at, from, n);
    input_size += n;
}

/* Another number in the place of a run of digits. */
static void renumber(size_t at)
{
    static const char *const numbers[] = {"0",
                                          "1",
                                          "-1",
                                          "2",
                                          "3",
                                          "7",
                                          "15",
                                          "16",
                                          "31",
                                          "32",
                                          "64",
                                          "65",
                                          "128",
                                          "255",
                                          "256",
                                          "1e9",
                                          "2147483647",
                                          "2147483648",
                                          "4294967295",
                                          "4294967296",
                                          "9007199254740993",
                                          "18446744073709551615",
                                          "0.5",
                                          "1e308",
                                          "null",
                                          "\"x\"",
                                          "[]",
                                          "{}"};
    while (at < input_size && (input[at] < '0' || input[at] > '9'))
        at++;
    size_t end = at;
    while (end < input_size && input[end] >= '0' && input[end] <= '9')
        end++;
    if (at == end)
        return;
    memmove(input + at, input + end, input_size - end);
    input_size -= end - at;
    const char *n = numbers[noise(sizeof numbers / sizeof numbers[0])];
    insert(at, (const uint8_t *)n, strlen(n));
}

static void mutate(const uint8_t *other, size_t other_size)
{
    static const uint64_t words[] = {0,
                                     1,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0x7fff,
                                     0xffff,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     0x7fffffffffffffff,
                                     0x8000000000000000,
                                     0xffffffffffffffff,
                                     0x7f800000,
                                     0x7fc00000,
                                     0x7c00};
    size_t at = noise((uint32_t)input_size), n = 1 + noise(noise(4) ? 8 : 256);
    /* most of what matters is near the beginning */
    if (noise(2))
        at %= 512 < input_size ? 512 : input_size;
    size_t left = input_size - at;
    switch (noise(9)) {
    case 0: input[at] ^= (uint8_t)(1u << noise(8)); break;
    case 1: input[at] = (uint8_t)noise(256); break;
    case 2:
    case 3: {
        uint64_t w = words[noise(sizeof words / sizeof words[0])];
        size_t size = (size_t)1 << noise(4);
        memcpy(input + at, &w, size < left ? size : left);
        break;
    }
    case 4:
        n = n < left ? n : left;
        memmove(input + at, input + at + n, input_size - at - n);
        input_size -= n;
        break;
    case 5: {
        uint8_t copy[256];
        size_t from = noise((uint32_t)input_size);
        n = n < input_size - from ? n : input_size - from;
        memcpy(copy, input + from, n);
        insert(at, copy, n);
        break;
    }
    case 6: input_size = noise(4) ? input_size : at + 1; break;
    case 7:
        n = n < other_size ? n : other_size;
        memcpy(input + at, other + noise((uint32_t)(other_size - n + 1)), n < left ? n : left);
        break;
    default: renumber(at);
    }
    input_size = input_size ? input_size : 1;
}

static long number(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

int main(int argc, char **argv)
{
    uint8_t *seeds[MAX_SEEDS];
    size_t sizes[MAX_SEEDS], n = 0;
    long seconds = number("FUZZ_SECONDS", 0), runs = number("FUZZ_RUNS", 20000), done = 0;
    time_t start = time(NULL);
    state = (uint64_t)number("FUZZ_SEED", 1) * 0x9e3779b97f4a7c15u + 1;
    snprintf(crash, sizeof crash, "/tmp/turbo-fuzz-crash-%ld", (long)getpid());
    signal(SIGSEGV, on_signal);
    signal(SIGBUS, on_signal);
    signal(SIGABRT, on_signal);
    signal(SIGFPE, on_signal);
    for (int i = 1; i < argc; i++) { /* files: once each */
        FILE *f = fopen(argv[i], "rb");
        input_size = f ? fread(input, 1, MAX_SIZE, f) : 0;
        if (f)
            fclose(f);
        fuzz_one(input, input_size);
    }
    while (argc == 1 && n < MAX_SEEDS && (seeds[n] = fuzz_seed((int)n, &sizes[n])))
        n++;
    int rc = argc == 1 && !n;
    if (rc)
        printf("there is no seed; srcdir and TURBO_PLUGIN_PATH say where they come from\n");
    for (size_t i = 0; i < n && !rc; i++) { /* as they are, all must pass */
        memcpy(input, seeds[i], input_size = sizes[i]);
        rc = fuzz_one(input, input_size) != 0;
        if (rc)
            printf("seed %zu is refused\n", i);
    }
    for (; argc == 1 && !rc && (seconds ? time(NULL) - start < seconds : done < runs); done++) {
        size_t i = noise((uint32_t)n), other = noise((uint32_t)n);
        memcpy(input, seeds[i], input_size = sizes[i]);
        for (uint32_t k = 1 + noise(noise(3) ? 4 : 16); k; k--)
            mutate(seeds[other], sizes[other]);
        fuzz_one(input, input_size);
    }
    for (size_t i = 0; i < n; i++)
        free(seeds[i]);
    fuzz_clean();
    printf("%zu seeds, %ld mutations, %ld s\n", n, done, (long)(time(NULL) - start));
    return rc;
}
