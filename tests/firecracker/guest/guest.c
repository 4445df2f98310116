// What runs in the microVM: fills memory with a pattern, and from then on
// touches some of it in rounds and says what it has found, on the serial port:
//
//   READY             the pattern is there
//   BEGIN k           round k begins
//   TOUCHED k BAD     all pages of the round were touched; so many were wrong
//   CHECKED k BAD     the same of all pages, in every 64th round
//   BALLOON k BAD     every eighth round, with a balloon: pages were given back
//                     and taken again; so many were not zero
//
// Options, on the kernel's command line: pages=, touched=, sequential=,
// balloon= (the device's address).

typedef unsigned char Byte;
typedef unsigned short Half;
typedef unsigned int Word;
typedef unsigned long Long;

enum {
  kPageBytes = 4096,
  kSerialPort = 0x3f8,
  kCommandLine = 0x228,  // Where boot parameters have its address.
  kMostTouched = 65536,
  kBalloonPages = 256,
};

static volatile Long* const kMemory = (volatile Long*)0x2000000;
static Word touched[kMostTouched];

// ---- Words, in and out ----

static void Put(const char* text) {
  for (; *text; ++text) {
    __asm__ volatile("outb %0, %1"
                     :
                     : "a"((Byte)*text), "Nd"((Half)kSerialPort));
  }
}

static void PutNumber(Long number) {
  char digits[24];
  int at = sizeof digits;
  digits[--at] = 0;
  do {
    digits[--at] = '0' + number % 10;
    number /= 10;
  } while (number);
  Put(" ");
  Put(digits + at);
}

static void Say(const char* what, Long round, Long bad) {
  Put(what);
  PutNumber(round);
  PutNumber(bad);
  Put("\n");
}

static Long Option(const char* line, const char* name, Long value) {
  for (; *line; ++line) {
    const char* at = line;
    const char* wanted = name;
    while (*wanted && *at == *wanted) ++at, ++wanted;
    if (*wanted) continue;
    for (value = 0; *at >= '0' && *at <= '9'; ++at)
      value = value * 10 + *at - '0';
    return value;
  }
  return value;
}

static Long Ticks(void) {
  Word low, high;
  __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
  return ((Long)high << 32) | low;
}

// ---- The pattern ----

static Long PatternAt(Long word) {
  word *= 0x9E3779B97F4A7C15ul;
  word ^= word >> 29;
  return word * 0xBF58476D1CE4E5B9ul;
}

static void FillPage(Long page) {
  for (Long word = page * 512; word < page * 512 + 512; word += 8) {
    kMemory[word] = PatternAt(word);
  }
}

static int PageIsWrong(Long page, Long step) {
  for (Long word = page * 512; word < page * 512 + 512; word += step) {
    if (kMemory[word] != PatternAt(word)) return 1;
  }
  return 0;
}

// ---- A balloon: virtio over memory-mapped I/O, polled ----

struct Descriptor {
  Long address;
  Word bytes;
  Half flags, next;
};
struct Available {
  Half flags, index, ring[8];
};
struct Used {
  Half flags, index;
  struct {
    Word id, bytes;
  } ring[8];
};
// For each of two queues: to inflate, to deflate.
static struct Descriptor descriptors[2][8] __attribute__((aligned(4096)));
static struct Available available[2] __attribute__((aligned(4096)));
static volatile struct Used used[2] __attribute__((aligned(4096)));
static Word frames[kBalloonPages] __attribute__((aligned(4096)));
static Long balloon;

static volatile Word* Register(Long offset) {
  return (volatile Word*)(balloon + offset);
}

static void StartBalloon(void) {
  *Register(0x70) = 0;  // Reset, acknowledged, a driver is there.
  *Register(0x70) = 1;
  *Register(0x70) = 3;
  *Register(0x24) = 0;  // No features but version 1.
  *Register(0x20) = 0;
  *Register(0x24) = 1;
  *Register(0x20) = 1;
  *Register(0x70) = 11;
  for (Word queue = 0; queue < 2; ++queue) {
    *Register(0x30) = queue;
    *Register(0x38) = 8;
    *Register(0x80) = (Word)(Long)descriptors[queue];
    *Register(0x84) = 0;
    *Register(0x90) = (Word)(Long)&available[queue];
    *Register(0x94) = 0;
    *Register(0xa0) = (Word)(Long)&used[queue];
    *Register(0xa4) = 0;
    *Register(0x44) = 1;
  }
  *Register(0x70) = 15;
}

// Hands kBalloonPages pages, from the physical page `first`, to a queue.
static void Hand(Word queue, Long first) {
  for (Word i = 0; i < kBalloonPages; ++i) frames[i] = (Word)(first + i);
  descriptors[queue][0].address = (Long)frames;
  descriptors[queue][0].bytes = sizeof frames;
  available[queue].ring[available[queue].index & 7] = 0;
  __sync_synchronize();
  ++available[queue].index;
  __sync_synchronize();
  *Register(0x50) = queue;
  while (used[queue].index != available[queue].index) {
    __asm__ volatile("pause");
  }
}

void Main(const Byte* boot_parameters) {
  const char* const line =
      (const char*)(Long) * (const Word*)(boot_parameters + kCommandLine);
  const Long pages = Option(line, "pages=", 32768);
  const Long count = Option(line, "touched=", 4096);
  const Long sequential = Option(line, "sequential=", 0);
  balloon = Option(line, "balloon=", 0);
  if (balloon) StartBalloon();
  for (Long page = 0; page < pages; ++page) FillPage(page);
  // A factor that is odd, so that no page comes twice where `pages` is a power
  // of two.
  for (Long i = 0; i < count; ++i) {
    touched[i] = sequential ? i : (i * 2654435761ul + 12345) % pages;
  }
  Put("READY\n");
  for (Long round = 1;; ++round) {
    Say("BEGIN", round, 0);
    Long bad = 0;
    for (Long i = 0; i < count; ++i) bad += PageIsWrong(touched[i], 256);
    Say("TOUCHED", round, bad);
    if (balloon && round % 8 == 0) {
      const Long first = pages - kBalloonPages;
      const Long frame = ((Long)kMemory / kPageBytes) + first;
      Hand(0, frame);
      Hand(1, frame);
      bad = 0;
      for (Long page = first; page < pages; ++page) {
        bad += kMemory[page * 512] != 0;
      }
      Say("BALLOON", round, bad);
      for (Long page = first; page < pages; ++page) FillPage(page);
    }
    if (round % 64 == 0) {
      bad = 0;
      for (Long page = 0; page < pages; ++page) bad += PageIsWrong(page, 8);
      Say("CHECKED", round, bad);
    }
    // Some ms, in which a snapshot may be made.
    const Long end = Ticks() + 10000000;
    while (Ticks() < end) __asm__ volatile("pause");
  }
}
