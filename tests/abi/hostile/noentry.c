/* tests/abi/hostile/noentry.c: exports no entry. */
int not_the_entry(void);
int not_the_entry(void)
{
    return 1;
}
