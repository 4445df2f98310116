#include "firsttouch/tools/firsttouchd/saver.h"

#include "firsttouch/uffd/signal_masked_thread.h"

namespace firsttouch::firsttouchd {

absl::StatusOr<std::unique_ptr<Saver>> Saver::Start(std::function<void()> job) {
  std::unique_ptr<Saver> saver(new Saver(std::move(job)));
  absl::StatusOr<std::thread> thread =
      StartSignalMaskedThread("ft-save", [&s = *saver] { s.Run(); });
  if (!thread.ok()) return thread.status();
  saver->thread_ = *std::move(thread);
  return saver;
}

Saver::~Saver() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.Signal();
  }
  thread_.join();
}

void Saver::Request() {
  MutexLock lock(&mutex_);
  requested_ = true;
  changed_.Signal();
}

void Saver::Run() {
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (!requested_ && !stopping_) changed_.Wait(&mutex_);
      if (!requested_) return;
      requested_ = false;
    }
    job_();
  }
}

}  // namespace firsttouch::firsttouchd
