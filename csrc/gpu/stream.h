// Streams and events.
#pragma once

#include "device.h"

namespace effnet_fast::gpu {

class Event;

class Stream : public Resource {
 public:
  // A stream of our own, which never waits for the legacy stream.
  explicit Stream(std::shared_ptr<Device> device);
  // Somebody else's (torch's current stream; 0: the legacy stream). Not destroyed by us.
  Stream(std::shared_ptr<Device> device, cuda::CUstream borrowed);
  ~Stream() override { finish(); }

  cuda::CUstream handle() const { return handle_; }
  // The device, or an error when it has been closed.
  Device& open() const { return open_device(); }
  void synchronize();
  bool done();
  // Whether it is being captured into a graph.
  bool capturing() const;
  // Later work here waits for what the event stands for.
  void wait(const Event& event);

 protected:
  void release() noexcept override;

 private:
  cuda::CUstream handle_ = nullptr;
  bool borrowed_ = false;
};

class Event : public Resource {
 public:
  explicit Event(std::shared_ptr<Device> device, bool timing = true);
  ~Event() override { finish(); }
  cuda::CUevent handle() const { return handle_; }
  void record(Stream& stream);
  void synchronize();
  bool done();
  // Milliseconds from `start` to this event.
  float elapsed_since(const Event& start) const;

 protected:
  void release() noexcept override;

 private:
  cuda::CUevent handle_ = nullptr;
};

}  // namespace effnet_fast::gpu
