// What a process, or who starts it, may set for the whole of it, and what a
// pool must bear. Each of it by a name, so that the judge can draw some at
// random and print which they were.

#ifndef FIRSTTOUCH_TESTS_HOSTILE_ENVIRONMENT_H_
#define FIRSTTOUCH_TESTS_HOSTILE_ENVIRONMENT_H_

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace firsttouch::hostile {

// The variable by which the judge tells a program its environment.
inline constexpr char kEnvironmentVariable[] = "FIRSTTOUCH_HOSTILE_ENVIRONMENT";

// Names of settings, with commas between them; each is drawn with a chance of
// one in three, and none that this user may not have or that contradicts
// another one of them.
std::string DrawEnvironment(std::mt19937_64& random);

// Makes the calling process, which has one thread and no pool yet, such an
// environment. False, with a line on stderr: a name is none, or the kernel
// refused it for another reason than that it does not know it.
bool EnterEnvironment(std::string_view names);

}  // namespace firsttouch::hostile

#endif  // FIRSTTOUCH_TESTS_HOSTILE_ENVIRONMENT_H_
