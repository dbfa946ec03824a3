/* kernels/cuda/images.h: the compiled kernels inside turbok-cuda.so, one image for each .cu. images.c is
 * made by cuda.am. */
#ifndef TURBOK_CUDA_IMAGES_H
#define TURBOK_CUDA_IMAGES_H

typedef struct turbok_cu_image {
    const char *file; /* "embed" for embed.cu */
    const void *image; /* a fatbin */
    const char *archs; /* architectures of its real code: "80 89 90a" */
} turbok_cu_image;

extern const turbok_cu_image turbok_cu_images[]; /* the last one has no file */

#endif
