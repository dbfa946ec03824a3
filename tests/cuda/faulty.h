/* tests/cuda/faulty.h: the argument of the kernels of faulty.cu. */
#ifndef FAULTY_H
#define FAULTY_H

struct turbok_cu_faulty_args {
    int *out; /* [threads] */
    const int *in;
    long n;
};

#endif
