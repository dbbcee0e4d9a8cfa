// Keeps the extension loadable on glibc 2.28 and newer, whatever glibc it was linked on.
//
// Since 2.34 glibc's linker stub gives the thread functions a new version, though their ABI never changed; an extension
// linked there refuses to load on an older system and can't carry the manylinux_2_28 tag. So the few functions that
// std::thread, std::mutex, std::condition_variable and pybind11 reach are bound here to the version they first appeared
// with, behind hidden definitions that the rest of the extension (libstdc++.a included) links to. A wheel built in the
// manylinux image gets the same symbols without this file; it does no harm there.

#if defined(__linux__)
#include <pthread.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#endif

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))

#if defined(__x86_64__)
#define LLMCORE_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define LLMCORE_FIRST_GLIBC "GLIBC_2.17"
#endif
#define LLMCORE_HIDDEN __attribute__((visibility("hidden")))

// Defines `name` as a call of its first version.
#define LLMCORE_FIRST_VERSION(name, parameters, arguments)                   \
  int llmcore_first_##name parameters;                                       \
  __asm__(".symver llmcore_first_" #name "," #name "@" LLMCORE_FIRST_GLIBC); \
  LLMCORE_HIDDEN int name parameters { return llmcore_first_##name arguments; }

extern "C" {

LLMCORE_FIRST_VERSION(pthread_create,
                      (pthread_t * thread, const pthread_attr_t* attr, void* (*start)(void*), void* arg) noexcept,
                      (thread, attr, start, arg))
LLMCORE_FIRST_VERSION(pthread_join, (pthread_t thread, void** result), (thread, result))
LLMCORE_FIRST_VERSION(pthread_detach, (pthread_t thread) noexcept, (thread))
LLMCORE_FIRST_VERSION(pthread_once, (pthread_once_t * once, void (*init)(void)), (once, init))
LLMCORE_FIRST_VERSION(pthread_key_create, (pthread_key_t * key, void (*destroy)(void*)) noexcept, (key, destroy))
LLMCORE_FIRST_VERSION(__pthread_key_create, (pthread_key_t * key, void (*destroy)(void*)) noexcept, (key, destroy))
LLMCORE_FIRST_VERSION(pthread_key_delete, (pthread_key_t key) noexcept, (key))
LLMCORE_FIRST_VERSION(pthread_setspecific, (pthread_key_t key, const void* value) noexcept, (key, value))

void* llmcore_first_pthread_getspecific(pthread_key_t key) noexcept;
__asm__(".symver llmcore_first_pthread_getspecific,pthread_getspecific@" LLMCORE_FIRST_GLIBC);
LLMCORE_HIDDEN void* pthread_getspecific(pthread_key_t key) noexcept { return llmcore_first_pthread_getspecific(key); }

// 2.30's timed wait on a chosen clock, for std::condition_variable::wait_for: the rest of the wait, on the clock that
// every glibc's condition variables use. A clock that is set meanwhile shortens or stretches this one wait; callers
// loop on their predicate and their own deadline as they must anyhow.
LLMCORE_HIDDEN int pthread_cond_clockwait(pthread_cond_t* cond, pthread_mutex_t* mutex, clockid_t clock,
                                          const struct timespec* deadline) {
  struct timespec there;
  struct timespec here;
  clock_gettime(clock, &there);
  clock_gettime(CLOCK_REALTIME, &here);
  here.tv_sec += deadline->tv_sec - there.tv_sec;
  here.tv_nsec += deadline->tv_nsec - there.tv_nsec;
  if (here.tv_nsec < 0) {
    here.tv_nsec += 1000000000;
    here.tv_sec -= 1;
  } else if (here.tv_nsec >= 1000000000) {
    here.tv_nsec -= 1000000000;
    here.tv_sec += 1;
  }
  return pthread_cond_timedwait(cond, mutex, &here);
}

// 2.36's generator, which libstdc++ keeps for std::random_device (unused here): the system's entropy. It can't fail for
// four bytes on a kernel that a glibc of this age runs on.
LLMCORE_HIDDEN uint32_t arc4random(void) {
  uint32_t value = 0;
  while (getentropy(&value, sizeof(value)) != 0) {
  }
  return value;
}

// 2.32's flag that lets libstdc++ skip atomic reference counts before the first thread starts. Never skipping is right.
LLMCORE_HIDDEN char __libc_single_threaded = 0;

}  // extern "C"

#endif
