/** \file
 * What is visible outside of the shared library. Usable from C and C++.
 */
#ifndef HOLOCRON_EXPORT_H
#define HOLOCRON_EXPORT_H

/* HOLOCRON_API is part of the library's interface, HOLOCRON_LOCAL is not, although it lies in what is. */
#if defined(_WIN32)
#define HOLOCRON_LOCAL
#else
#define HOLOCRON_LOCAL __attribute__((visibility("hidden")))
#endif

#if defined(HOLOCRON_STATIC)
#define HOLOCRON_API
#elif defined(_WIN32)
#if defined(HOLOCRON_BUILDING)
#define HOLOCRON_API __declspec(dllexport)
#else
#define HOLOCRON_API __declspec(dllimport)
#endif
#else
#define HOLOCRON_API __attribute__((visibility("default")))
#endif

#endif
