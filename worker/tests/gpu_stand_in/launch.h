// Arguments of a launch, from the driver to a program.

#include <cstddef>
#include <functional>

namespace stand_in {

typedef unsigned int u32;
typedef unsigned long long u64;

struct Index {
    unsigned x, y, z;
};

// Where a thread of the system is, for messages.
struct Place {
    void (*describe)(char *to, size_t size);
};

struct Launch {
    Index grid, block;
    unsigned shared_bytes;
    // Seeds the order of threads.
    u64 seed;
    // Of the thread of the system that calls it.
    Place *(*place)();
};

}  // namespace stand_in
