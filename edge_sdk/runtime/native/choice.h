// One table of functions out of several, chosen by what the processor has.
#pragma once

#include <atomic>
#include <cstring>
#include <string>
#include <vector>

namespace trajsyn {

template <typename Table>
class Choice {
 public:
  // `tables` from the best to the one that every processor has.
  template <size_t N>
  Choice(const Table* const (&tables)[N], bool (*is_supported)(const Table&)) {
    for (const Table* table : tables) {
      if (!is_supported(*table)) continue;
      supported_.push_back(table);
      names_ += (names_.empty() ? "" : " ") + std::string(table->name);
    }
    chosen_ = supported_.front();
  }

  const Table& get() const { return *chosen_.load(std::memory_order_acquire); }

  const char* names() const { return names_.c_str(); }

  bool select(const char* name) {
    for (const Table* table : supported_) {
      if (std::strcmp(table->name, name) != 0) continue;
      chosen_.store(table, std::memory_order_release);
      return true;
    }
    return false;
  }

 private:
  std::vector<const Table*> supported_;
  std::string names_;
  std::atomic<const Table*> chosen_{nullptr};
};

}  // namespace trajsyn
