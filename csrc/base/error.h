#pragma once
// The exception hierarchy. Bindings translate each class to the Python class of the same name.
// A message says the operation, what was expected, what came, and the remedy.

#include <stdexcept>
#include <string>

namespace llmcore {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class ArgumentError : public Error {
 public:
  using Error::Error;
};
class LimitError : public Error {
 public:
  using Error::Error;
};
class OutOfMemoryError : public Error {
 public:
  using Error::Error;
};
class ContextLengthError : public Error {
 public:
  using Error::Error;
};
class NumericError : public Error {
 public:
  using Error::Error;
};
class ClosedError : public Error {
 public:
  using Error::Error;
};
class BusyError : public Error {
 public:
  using Error::Error;
};
class TokenizerError : public Error {
 public:
  using Error::Error;
};
class QuantError : public Error {
 public:
  using Error::Error;
};
/// A long-running call was asked to stop (Ctrl-C); the binding re-raises the pending Python exception.
class Interrupted : public Error {
 public:
  Interrupted() : Error("interrupted") {}
};

/// Throws ArgumentError with `message` unless `condition` holds.
void check_argument(bool condition, const std::string& message);

}  // namespace llmcore
