/* How stb_image is compiled, for the guest and for the host: so that both give
 * the same pixels. PNG and JPEG, from memory. */

#ifndef FIRSTTOUCH_EXAMPLES_STB_SETTINGS_H_
#define FIRSTTOUCH_EXAMPLES_STB_SETTINGS_H_

#include <stdlib.h>

#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_NO_STDIO
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG

/* Where a file ends early, stb_image gives pixels that it never wrote. They are
 * zero, and not what the heap had there before. */
#define STBI_MALLOC(bytes) calloc(1, bytes)
#define STBI_REALLOC(memory, bytes) realloc(memory, bytes)
#define STBI_FREE(memory) free(memory)

/* Without a text, for which a guest would need an output. */
#define STBI_ASSERT(holds) ((holds) ? (void)0 : __builtin_trap())

#endif /* FIRSTTOUCH_EXAMPLES_STB_SETTINGS_H_ */
