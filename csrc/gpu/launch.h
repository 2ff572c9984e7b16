// A launch is data: a kernel, a grid, a block, shared memory, packed arguments, and what it
// touches.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "device.h"
#include "stream.h"

namespace effnet_fast::gpu {

// Bytes that a launch reads or writes; the machine holds it to that.
struct Region {
  std::string name;
  cuda::CUdeviceptr base = 0;
  size_t bytes = 0;
  bool readable = true, writable = true;
};

struct Launch {
  std::shared_ptr<Module> module;  // keeps the function alive
  Function* function = nullptr;
  std::array<unsigned, 3> grid{1, 1, 1}, block{1, 1, 1};
  unsigned shared = 0;  // dynamic, in bytes
  std::vector<uint8_t> arguments;
  std::vector<ParameterLayout> layout;  // of the arguments
  std::vector<Region> regions;
};

// Throws std::invalid_argument when the packed arguments are not the parameters that the driver
// says the function has; allows its shared memory. To be called once, before any launch of it.
void prepare(Launch& launch);

// Hands prepared launches to a stream, in order.
void run(const std::vector<const Launch*>& launches, Stream& stream);

// A graph of launches, captured on a stream of our own. Replayed on a stream that is itself being
// captured, it makes plain launches: a graph in a graph would be the capturer's surprise.
class Graph : public Resource {
 public:
  Graph(std::shared_ptr<Device> device, std::vector<std::shared_ptr<const Launch>> launches);
  ~Graph() override { finish(); }
  void launch(Stream& stream);
  size_t nodes() const { return nodes_; }

 protected:
  void release() noexcept override;

 private:
  std::vector<std::shared_ptr<const Launch>> launches_;
  std::vector<const Launch*> order_;
  cuda::CUgraphExec exec_ = nullptr;
  size_t nodes_ = 0;
};

}  // namespace effnet_fast::gpu
