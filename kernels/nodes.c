/* kernels/nodes.c: see nodes.h. */
#include "nodes.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* CPUs of a list such as 0-3,8-11. */
static void read_list(const char *text, cpu_set_t *set)
{
    CPU_ZERO(set);
    while (*text >= '0' && *text <= '9') {
        char *end;
        unsigned long from = strtoul(text, &end, 10), to = from;
        if (*end == '-')
            to = strtoul(end + 1, &end, 10);
        for (unsigned long cpu = from; cpu <= to && cpu < CPU_SETSIZE; cpu++)
            CPU_SET(cpu, set);
        text = *end == ',' ? end + 1 : end;
    }
}

static int by_name(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

void turbok_nodes_read(const char *root, const cpu_set_t *allowed, turbok_nodes *out)
{
    int ids[TURBOK_NODES_MAX + 1], count = 0;
    DIR *dir = opendir(root);
    for (struct dirent *e; dir && count <= TURBOK_NODES_MAX && (e = readdir(dir));)
        if (!strncmp(e->d_name, "node", 4) && e->d_name[4] >= '0' && e->d_name[4] <= '9')
            ids[count++] = (int)strtol(e->d_name + 4, NULL, 10);
    if (dir)
        closedir(dir);
    count = count > TURBOK_NODES_MAX ? 0 : count;
    qsort(ids, (size_t)count, sizeof *ids, by_name);
    cpu_set_t left = *allowed;
    out->n = 0;
    for (int i = 0; i < count; i++) {
        char path[512], text[4096] = "";
        snprintf(path, sizeof path, "%s/node%d/cpulist", root, ids[i]);
        FILE *f = fopen(path, "r");
        if (!f || !fgets(text, sizeof text, f))
            *text = '\0';
        if (f)
            fclose(f);
        cpu_set_t *cpus = &out->cpus[out->n];
        read_list(text, cpus);
        CPU_AND(cpus, cpus, &left);
        CPU_XOR(&left, &left, cpus);
        out->n += CPU_COUNT(cpus) > 0;
    }
    /* A CPU that no node names: the lists are no partition, and are not believed. */
    if (!out->n || CPU_COUNT(&left)) {
        out->n = 1;
        out->cpus[0] = *allowed;
    }
}
