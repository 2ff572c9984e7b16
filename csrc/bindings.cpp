// effnet_fast._C: the CPU engine for Python. Checks and calls, nothing else. bindings_gpu.cpp adds
// the submodule gpu.
//
// Memory is passed as addresses (integers) and stays the caller's: what a Program or its constants
// point to must outlive them. std::invalid_argument becomes ValueError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "effnet_fast/kernels.h"
#include "effnet_fast/normalise.h"
#include "effnet_fast/program.h"
#include "effnet_fast/resize.h"

namespace py = pybind11;
using namespace py::literals;

namespace effnet_fast {
namespace {

using Address = std::uintptr_t;
// data, n, c, h, w, stride_n, stride_c, stride_h, stride_w
using TensorTuple = std::array<int64_t, 9>;

float* at(Address address) { return reinterpret_cast<float*>(address); }

void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

void check_sizes(std::initializer_list<int64_t> sizes) {
  for (const int64_t size : sizes) {
    check(size >= 1, "a size is " + std::to_string(size) + "; accepted: 1 or more");
  }
}

void check_addresses(Address src, Address dst) {
  check(src != 0, "src is 0; accepted: an address");
  check(dst != 0, "dst is 0; accepted: an address");
}

std::vector<Tensor> tensors_of(const std::vector<TensorTuple>& tuples) {
  std::vector<Tensor> tensors;
  tensors.reserve(tuples.size());
  for (const TensorTuple& t : tuples) {
    tensors.push_back(
        {at(static_cast<Address>(t[0])), t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8]});
  }
  return tensors;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : available_kernels()) names.push_back(table->name);
  return names;
}

py::dict build_info() {
#if defined(__clang__)
  const char* compiler = "clang " __clang_version__;
#else
  const char* compiler = "gcc " __VERSION__;
#endif
  std::vector<std::string> isas;
  std::stringstream compiled(EFFNET_FAST_ISAS);
  for (std::string isa; std::getline(compiled, isa, ',');) isas.push_back(isa);
  return py::dict("version"_a = EFFNET_FAST_VERSION, "compiler"_a = compiler,
                  "cxx_flags"_a = EFFNET_FAST_CXX_FLAGS, "isas"_a = isas, "cuda"_a = false,
                  "pybind11"_a = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
                      PYBIND11_VERSION_MINOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_PATCH));
}

void bind_packing(py::module_& m) {
  m.def(
      "packed_conv_size",
      [](int64_t cout, int64_t cin, int64_t kh, int64_t kw) {
        check_sizes({cout, cin, kh, kw});
        return kernels().packed_conv_size(cout, cin, kh, kw);
      },
      "cout"_a, "cin"_a, "kh"_a, "kw"_a, "Floats of a packed dense convolution weight.");
  m.def(
      "pack_conv",
      [](Address src, int64_t cout, int64_t cin, int64_t kh, int64_t kw, Address dst) {
        check_addresses(src, dst);
        check_sizes({cout, cin, kh, kw});
        py::gil_scoped_release release;
        kernels().pack_conv(at(src), cout, cin, kh, kw, at(dst));
      },
      "src"_a, "cout"_a, "cin"_a, "kh"_a, "kw"_a, "dst"_a,
      "Pack a contiguous float32 weight (cout, cin, kh, kw) for Conv.");
  m.def(
      "packed_depthwise_size",
      [](int64_t c, int64_t kh, int64_t kw) {
        check_sizes({c, kh, kw});
        return kernels().packed_depthwise_size(c, kh, kw);
      },
      "c"_a, "kh"_a, "kw"_a, "Floats of a packed depthwise convolution weight.");
  m.def(
      "pack_depthwise",
      [](Address src, int64_t c, int64_t kh, int64_t kw, Address dst) {
        check_addresses(src, dst);
        check_sizes({c, kh, kw});
        py::gil_scoped_release release;
        kernels().pack_depthwise(at(src), c, kh, kw, at(dst));
      },
      "src"_a, "c"_a, "kh"_a, "kw"_a, "dst"_a,
      "Pack a contiguous float32 weight (c, 1, kh, kw) for DepthwiseConv.");
}

void bind_constants(py::module_& m) {
  py::class_<Window>(m, "Window", "Where a kh x kw window lies on its input.")
      .def(py::init([](int64_t kh, int64_t kw, int64_t stride_h, int64_t stride_w,
                       int64_t dilation_h, int64_t dilation_w, int64_t top, int64_t left,
                       int64_t bottom, int64_t right) {
             return Window{kh,         kw,  stride_h, stride_w, dilation_h,
                           dilation_w, top, left,     bottom,   right};
           }),
           "kh"_a, "kw"_a, "stride_h"_a, "stride_w"_a, "dilation_h"_a, "dilation_w"_a, "top"_a,
           "left"_a, "bottom"_a, "right"_a);
  py::class_<Conv>(m, "Conv", "A dense convolution: packed weight, bias or 0, activation.")
      .def(py::init([](int64_t cin, int64_t cout, Address weight, Address bias, int32_t act) {
             return Conv{cin, cout, at(weight), at(bias), static_cast<Act>(act)};
           }),
           "cin"_a, "cout"_a, "weight"_a, "bias"_a, "act"_a);
  py::class_<DepthwiseConv>(
      m, "DepthwiseConv", "A depthwise convolution: window, packed weight, bias or 0, activation.")
      .def(py::init([](int64_t c, const Window& window, Address weight, Address bias, int32_t act) {
             return DepthwiseConv{c, window, at(weight), at(bias), static_cast<Act>(act)};
           }),
           "c"_a, "window"_a, "weight"_a, "bias"_a, "act"_a);
  py::class_<SqueezeExcite>(m, "SqueezeExcite",
                            "Both layers: w1 and w2 are [squeezed][c], biases may be 0.")
      .def(py::init([](int64_t c, int64_t squeezed, Address w1, Address b1, Address w2, Address b2,
                       int32_t act, int32_t gate_act) {
             return SqueezeExcite{c,
                                  squeezed,
                                  at(w1),
                                  at(b1),
                                  at(w2),
                                  at(b2),
                                  static_cast<Act>(act),
                                  static_cast<Act>(gate_act)};
           }),
           "c"_a, "squeezed"_a, "w1"_a, "b1"_a, "w2"_a, "b2"_a, "act"_a, "gate_act"_a);
  py::class_<Operand>(m, "Operand", "What a step reads or writes.")
      .def_static(
          "none", [] { return Operand{}; }, "No operand.")
      .def_static(
          "arena",
          [](int64_t offset, int64_t c, int64_t h, int64_t w) {
            return Operand{Operand::kArena, offset, 0, c, h, w};
          },
          "offset"_a, "c"_a, "h"_a, "w"_a, "A dense NHWC map, `offset` floats into the arena.")
      .def_static(
          "tensor",
          [](int32_t index, int64_t c, int64_t h, int64_t w) {
            return Operand{Operand::kTensor, 0, index, c, h, w};
          },
          "index"_a, "c"_a, "h"_a, "w"_a, "The call's tensor of that index.");
}

void bind_program(py::module_& m) {
  py::class_<Program>(m, "Program", "Steps over operands, run for a batch in one call.")
      .def(py::init<int64_t>(), "arena_floats"_a)
      .def("stem_conv", &Program::stem_conv, "conv"_a, "window"_a, "x"_a, "y"_a)
      .def("pointwise_conv", &Program::pointwise_conv, "conv"_a, "x"_a, "gate"_a, "residual"_a,
           "y"_a, "pool"_a)
      .def("depthwise_conv", &Program::depthwise_conv, "dw"_a, "x"_a, "y"_a, "sums"_a)
      .def("squeeze_excite", &Program::squeeze_excite, "se"_a, "sums"_a, "pixels"_a, "gate"_a)
      .def("expand_depthwise", &Program::expand_depthwise, "expand"_a, "dw"_a, "x"_a, "y"_a,
           "sums"_a)
      .def("stem_depthwise", &Program::stem_depthwise, "stem"_a, "stem_window"_a, "dw"_a, "x"_a,
           "y"_a, "sums"_a)
      .def("fused_mbconv", &Program::fused_mbconv, "conv"_a, "window"_a, "project"_a, "x"_a,
           "residual"_a, "y"_a, "winograd"_a = false,
           "`project` is a Conv or None; with `winograd` conv's weight is G g G', of 4 x 4.")
      .def("classifier", &Program::classifier, "conv"_a, "x"_a, "y"_a)
      .def("steps", &Program::steps)
      .def("workspace_bytes", &Program::workspace_bytes, "threads"_a)
      .def(
          "run",
          [](const Program& program, const std::vector<TensorTuple>& tuples, int64_t batch,
             int threads) {
            const std::vector<Tensor> tensors = tensors_of(tuples);
            py::gil_scoped_release release;
            program.run(tensors.data(), static_cast<int>(tensors.size()), batch, threads);
          },
          "tensors"_a, "batch"_a, "threads"_a,
          "Run the batch over (data, n, c, h, w, stride_n, stride_c, stride_h, stride_w) each.")
      .def(
          "profile",
          [](const Program& program, const std::vector<TensorTuple>& tuples, int64_t batch,
             int threads) {
            const std::vector<Tensor> tensors = tensors_of(tuples);
            std::vector<double> seconds(static_cast<size_t>(program.steps()));
            {
              py::gil_scoped_release release;
              program.run(tensors.data(), static_cast<int>(tensors.size()), batch, threads,
                          seconds.data());
            }
            return seconds;
          },
          "tensors"_a, "batch"_a, "threads"_a, "As run; the wall seconds of each step.");
}

void bind_pixels(py::module_& m) {
  m.def(
      "resize",
      [](Address x, int64_t height, int64_t width, int64_t row, int64_t to_height, int64_t to_width,
         int32_t filter, int64_t top, int64_t left, int64_t crop_height, int64_t crop_width,
         Address y) {
        check_addresses(x, y);
        check_sizes({height, width, to_height, to_width, crop_height, crop_width});
        check(row >= width * 3, "row is " + std::to_string(row) + "; accepted: at least width * 3");
        check(filter >= 0 && filter <= static_cast<int32_t>(Filter::kLanczos),
              "filter is " + std::to_string(filter) + "; accepted: 0 to 4");
        check(top >= 0 && left >= 0 && top + crop_height <= to_height &&
                  left + crop_width <= to_width,
              "the crop is not within the resized image");
        py::gil_scoped_release release;
        resize(kernels(), RgbImage{reinterpret_cast<const uint8_t*>(x), height, width, row},
               to_height, to_width, static_cast<Filter>(filter),
               Crop{top, left, crop_height, crop_width}, reinterpret_cast<uint8_t*>(y));
      },
      "x"_a, "height"_a, "width"_a, "row"_a, "to_height"_a, "to_width"_a, "filter"_a, "top"_a,
      "left"_a, "crop_height"_a, "crop_width"_a, "y"_a,
      "A crop of an 8-bit RGB image resized as Pillow does it; rows of y are dense.");
  m.def(
      "normalise",
      [](const std::vector<Address>& images, int64_t pixels, Address table, Address y) {
        for (const Address image : images) check_addresses(image, y);
        check_sizes({pixels});
        check(table != 0, "table is 0; accepted: an address");
        py::gil_scoped_release release;
        auto* to = reinterpret_cast<float*>(y);
        for (const Address image : images) {
          normalise(reinterpret_cast<const uint8_t*>(image), pixels,
                    *reinterpret_cast<const ByteTable*>(table), to);
          to += 3 * pixels;
        }
      },
      "images"_a, "pixels"_a, "table"_a, "y"_a,
      "RGB images' bytes to planes of floats, one after another, by a table of 3 x 256.");
}

}  // namespace

namespace gpu {
void bind_gpu(py::module_& parent);  // bindings_gpu.cpp
}

}  // namespace effnet_fast

PYBIND11_MODULE(_C, m) {
  using namespace effnet_fast;
  m.doc() = "The CPU engine of effnet_fast, and its GPU devices in the submodule gpu.";
  m.def("isa", [] { return kernels().name; }, "The instruction set in use.");
  m.def("available_isas", &available_isas, "Instruction sets that run here, best first.");
  m.def("lanes", [] { return kernels().lanes; }, "Floats in a vector of the set in use.");
  m.def("build_info", &build_info, "What this module was built from and with.");
  m.def(
      "activation",
      [](int32_t act, Address x, Address y, int64_t n, int threads) {
        py::gil_scoped_release release;
        activation(static_cast<Act>(act), at(x), at(y), n, threads);
      },
      "act"_a, "x"_a, "y"_a, "n"_a, "threads"_a, "y[i] = act(x[i]) for n floats; x may be y.");
  m.def(
      "prefetch",
      [](Address addresses, int64_t count) {
        const auto* lines = reinterpret_cast<const Address*>(addresses);
        for (int64_t i = 0; i < count; ++i)
          __builtin_prefetch(reinterpret_cast<const void*>(lines[i]));
      },
      "addresses"_a, "count"_a,
      "Ask for so many lines of the cache, at addresses that need not be valid.");
  bind_pixels(m);
  bind_packing(m);
  bind_constants(m);
  bind_program(m);
  gpu::bind_gpu(m);
}
