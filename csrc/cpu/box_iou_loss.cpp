// Losses from the overlap of boxes one by one, and their gradients.
#include "ops/box_iou_loss.h"

#include "cpu/box_iou_pairs.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kBlock = 256;  // boxes that are taken apart at a time

// What the loss and its gradient share.
template <BoxIouKind kind, typename A>
struct Pair {
  using V = vector_t<A>;
  V width, height;  // of the intersection
  V inter, all, iou;
  V W, H;  // of the smallest box around both
  V eps;   // of denominators
  V dx{}, dy{}, diagonal{};
  V difference{}, v{}, alpha{};

  Pair(const BoxVector<kind, A>& a, const BoxVector<kind, A>& b, A eps_of_call)
      : width(min(a.x2, b.x2) - max(a.x1, b.x1)),
        height(min(a.y2, b.y2) - max(a.y1, b.y1)),
        W(max(a.x2, b.x2) - min(a.x1, b.x1)),
        H(max(a.y2, b.y2) - min(a.y1, b.y1)),
        // as in torchvision, only the weight of the aspect ratio has the complete IoU's own
        eps(broadcast(kind == BoxIouKind::complete ? static_cast<A>(1e-7) : eps_of_call)) {
    inter = meets(width * height);
    all = a.area + b.area - inter;
    iou = inter / (all + eps);
    if constexpr (kind != BoxIouKind::generalized) {
      dx = a.cx - b.cx;
      dy = a.cy - b.cy;
      diagonal = W * W + H * H + eps;
    }
    if constexpr (kind == BoxIouKind::complete) {
      difference = b.angle - a.angle;
      v = broadcast(BoxConstants<A>::aspect) * (difference * difference);
      alpha = v / (broadcast(A(1)) - iou + v + broadcast(eps_of_call));
    }
  }

  // x where the boxes meet, otherwise 0
  V meets(V x) const {
    const V zero{};
    const V in_rows = height > zero ? x : zero;
    return width > zero ? in_rows : zero;
  }

  V loss() const {
    const V one = broadcast(A(1));
    if constexpr (kind == BoxIouKind::generalized) {
      const V area = W * H;
      return one - (iou - (area - all) / (area + eps));
    } else {
      const V distance = one - iou + (dx * dx + dy * dy) / diagonal;
      return kind == BoxIouKind::complete ? distance + alpha * v : distance;
    }
  }
};

// Adds what area and angle give to the corners of a box.
template <typename V>
struct Corners {
  V x1{}, y1{}, x2{}, y2{};

  void add_sides(V box_width, V box_height, V by_area, V by_angle) {
    V by_width = by_area * box_height, by_height = by_area * box_width;
    const V square = box_width * box_width + box_height * box_height, zero{};
    const V share = square > zero ? by_angle / square : zero;
    by_width += share * box_height;
    by_height -= share * box_width;
    x1 -= by_width;
    x2 += by_width;
    y1 -= by_height;
    y2 += by_height;
  }
};

template <BoxIouKind kind, typename A>
inline void gradient(
    const BoxVector<kind, A>& a,
    const BoxVector<kind, A>& b,
    A eps,
    vector_t<A> g,
    Corners<vector_t<A>>& da,
    Corners<vector_t<A>>& db
) {
  using V = vector_t<A>;
  const Pair<kind, A> p(a, b, eps);
  const V denominator = p.all + p.eps;
  V by_all = g * p.iou / denominator, by_inter = -g / denominator;
  V by_W, by_H, by_angle{};
  if constexpr (kind == BoxIouKind::generalized) {
    const V area = p.W * p.H, around = area + p.eps;
    const V by_area = g * ((broadcast(A(1)) - (area - p.all) / around) / around);
    by_all -= g / around;
    by_W = by_area * p.H;
    by_H = by_area * p.W;
  } else {
    const V share = g / p.diagonal;
    const V by_diagonal = -share * ((p.dx * p.dx + p.dy * p.dy) / p.diagonal);
    by_W = by_diagonal * 2 * p.W;
    by_H = by_diagonal * 2 * p.H;
    // a center moves by half as much as a side
    const V by_dx = share * p.dx, by_dy = share * p.dy;
    da = {by_dx, by_dy, by_dx, by_dy};
    db = {-by_dx, -by_dy, -by_dx, -by_dy};
    if constexpr (kind == BoxIouKind::complete) {
      by_angle = -g * p.alpha * broadcast(2 * BoxConstants<A>::aspect) * p.difference;
    }
  }
  give(db.x2, da.x2, a.x2, b.x2, by_W);
  give(da.x1, db.x1, a.x1, b.x1, -by_W);
  give(db.y2, da.y2, a.y2, b.y2, by_H);
  give(da.y1, db.y1, a.y1, b.y1, -by_H);
  by_inter -= by_all;
  const V by_w = p.meets(by_inter * p.height), by_h = p.meets(by_inter * p.width);
  give(da.x2, db.x2, a.x2, b.x2, by_w);
  give(db.x1, da.x1, a.x1, b.x1, -by_w);
  give(da.y2, db.y2, a.y2, b.y2, by_h);
  give(db.y1, da.y1, a.y1, b.y1, -by_h);
  da.add_sides(a.x2 - a.x1, a.y2 - a.y1, by_all, by_angle);
  db.add_sides(b.x2 - b.x1, b.y2 - b.y1, by_all, -by_angle);
}

template <typename A>
inline vector_t<A> load_some(const A* p, int64_t count) {
  return count >= lanes_v<A> ? load(p) : load_partial(p, static_cast<int>(count));
}

// Calls work(first, count, boxes1, boxes2) for blocks of boxes that are taken apart.
template <typename A, typename Work>
inline void for_blocks(const BoxIouArgs& args, int64_t begin, int64_t end, const Work& work) {
  Boxes<A, kBlock> boxes1, boxes2;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = end - first < kBlock ? end - first : kBlock;
    take_apart<A, A>(static_cast<const A*>(args.boxes1) + 4 * first, count, args, boxes1);
    take_apart<A, A>(static_cast<const A*>(args.boxes2) + 4 * first, count, args, boxes2);
    work(first, count, boxes1, boxes2);
  }
}

// Interleaves vectors of coordinates to boxes [count, 4].
template <typename A>
inline void put_together(const Corners<vector_t<A>>& c, int64_t count, A* to) {
  for (int64_t i = 0; i < count && i < lanes_v<A>; ++i) {
    to[4 * i] = c.x1[i];
    to[4 * i + 1] = c.y1[i];
    to[4 * i + 2] = c.x2[i];
    to[4 * i + 3] = c.y2[i];
  }
}

template <typename A>
void forward(const BoxIouArgs& args, A* losses, int64_t begin, int64_t end) {
  const A eps = static_cast<A>(args.eps);
  for_blocks<A>(args, begin, end, [&](int64_t first, int64_t count, auto& boxes1, auto& boxes2) {
    with_kind(args.kind, [&](auto constant) {
      constexpr BoxIouKind kind = decltype(constant)::value;
      for (int64_t i = 0; i < count; i += lanes_v<A>) {
        const auto a = BoxVector<kind, A>::several(boxes1, i);
        const auto b = BoxVector<kind, A>::several(boxes2, i);
        const vector_t<A> loss = Pair<kind, A>(a, b, eps).loss();
        if (count - i >= lanes_v<A>) {
          store(losses + first + i, loss);
        } else {
          store_partial(losses + first + i, loss, static_cast<int>(count - i));
        }
      }
    });
  });
}

template <typename A>
void backward(
    const BoxIouArgs& args, const A* grad, A* grad1, A* grad2, int64_t begin, int64_t end
) {
  const A eps = static_cast<A>(args.eps);
  for_blocks<A>(args, begin, end, [&](int64_t first, int64_t count, auto& boxes1, auto& boxes2) {
    with_kind(args.kind, [&](auto constant) {
      constexpr BoxIouKind kind = decltype(constant)::value;
      for (int64_t i = 0; i < count; i += lanes_v<A>) {
        const auto a = BoxVector<kind, A>::several(boxes1, i);
        const auto b = BoxVector<kind, A>::several(boxes2, i);
        Corners<vector_t<A>> da, db;
        gradient<kind, A>(a, b, eps, load_some(grad + first + i, count - i), da, db);
        put_together(da, count - i, grad1 + 4 * (first + i));
        put_together(db, count - i, grad2 + 4 * (first + i));
      }
    });
  });
}

}  // namespace

#define FASTVISION_DEFINE_BOX_IOU_LOSS(A)                                                   \
  void box_iou_loss(const BoxIouArgs& args, A* losses, int64_t begin, int64_t end) {        \
    forward<A>(args, losses, begin, end);                                                   \
  }                                                                                         \
  void box_iou_loss_backward(                                                               \
      const BoxIouArgs& args, const A* grad, A* grad1, A* grad2, int64_t begin, int64_t end \
  ) {                                                                                       \
    backward<A>(args, grad, grad1, grad2, begin, end);                                      \
  }
FASTVISION_DEFINE_BOX_IOU_LOSS(float)
FASTVISION_DEFINE_BOX_IOU_LOSS(double)
#undef FASTVISION_DEFINE_BOX_IOU_LOSS

}  // namespace fastvision::FASTVISION_ISA
