/** \file
 * The runtime for C, and for whatever else calls C: open a bundle and run it.
 *
 *     holocron_model* model = NULL;
 *     if (holocron_load("repvgg_a0/", NULL, &model) != HOLOCRON_OK) {
 *         fprintf(stderr, "%s\n", holocron_last_error());
 *     }
 *
 * Functions that can fail give a holocron_status; what went wrong is told by holocron_last_error() in the same thread.
 * A null pointer where one is needed is HOLOCRON_ERROR_ARGUMENT. No exception leaves the library.
 *
 * A model may be used by several threads at once, and closed while others run it. Freeing it is not to overlap with
 * anything else that is done with it. Results and tensors belong to the caller and may be read by several threads.
 * Strings and arrays that are handed out belong to the object they came from and live as long.
 */
#ifndef HOLOCRON_RUNTIME_H
#define HOLOCRON_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "holocron/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/** How a call ended. */
typedef enum holocron_status {
    HOLOCRON_OK = 0,
    HOLOCRON_ERROR_BUNDLE = 1,   /**< a bundle or a file of it is missing, edited, cut off or of an unknown version */
    HOLOCRON_ERROR_BACKEND = 2,  /**< what was asked for does not exist here, or failed to open or run the network */
    HOLOCRON_ERROR_IMAGE = 3,    /**< a frame is none, or cannot be taken */
    HOLOCRON_ERROR_INPUT = 4,    /**< a tensor has the wrong name, type, shape or values */
    HOLOCRON_ERROR_ARGUMENT = 5, /**< an argument is null or out of its range, or the call does not fit the model */
    HOLOCRON_ERROR_MEMORY = 6,   /**< there is not enough memory */
    HOLOCRON_ERROR_INTERNAL = 7  /**< something else: a mistake in the library */
} holocron_status;

/** What a model's outputs mean. */
typedef enum holocron_task {
    HOLOCRON_TASK_CLASSIFICATION = 0,
    HOLOCRON_TASK_DETECTION = 1,
    HOLOCRON_TASK_SEGMENTATION = 2
} holocron_task;

/** How the pixels of a frame are laid out, 8 bits a value. */
typedef enum holocron_format {
    HOLOCRON_FORMAT_RGB = 0,
    HOLOCRON_FORMAT_BGR = 1,
    HOLOCRON_FORMAT_RGBA = 2,
    HOLOCRON_FORMAT_BGRA = 3,
    HOLOCRON_FORMAT_GRAY = 4,
    HOLOCRON_FORMAT_NV12 = 5
} holocron_format;

/** Type of the elements of a tensor. */
typedef enum holocron_element_type {
    HOLOCRON_FLOAT32 = 0,
    HOLOCRON_FLOAT16 = 1,
    HOLOCRON_FLOAT64 = 2,
    HOLOCRON_UINT8 = 3,
    HOLOCRON_INT8 = 4,
    HOLOCRON_INT32 = 5,
    HOLOCRON_INT64 = 6,
    HOLOCRON_BOOL = 7
} holocron_element_type;

/** Where memory lies. */
typedef enum holocron_memory {
    HOLOCRON_MEMORY_HOST = 0, /**< the processor's */
    HOLOCRON_MEMORY_CUDA = 1  /**< that of the GPU that the model was loaded on */
} holocron_memory;

/** A network, opened from a bundle. */
typedef struct holocron_model holocron_model;
/** Answers, one a frame. */
typedef struct holocron_results holocron_results;
/** Named tensors. */
typedef struct holocron_tensors holocron_tensors;

/** What holocron_load is asked for. Set it up with holocron_load_options_init. */
typedef struct holocron_load_options {
    size_t size;           /**< of this struct, set by holocron_load_options_init */
    const char* backend;   /**< "tensorrt", "tensorrt_rtx", "onnxruntime-cuda", "openvino" or "onnxruntime"; NULL for
                              the best */
    const char* precision; /**< "fp32", "fp16", "int8", "int8.cpu" or "int8.trt"; NULL for the backend's best */
    const char* device;    /**< a GPU's number or "cuda:1", "cpu", or one of OpenVINO's devices; NULL for the first */
    int32_t threads;       /**< processor threads of one call, 1 to 1024; 0 for the physical cores */
    int32_t concurrency;   /**< calls that are to run at the same time, each on so many threads */
    int32_t contexts;      /**< of an engine: threads that run it at once, 1 to 64 */
    int32_t cuda_graphs;   /**< of an engine: whether inference is recorded and replayed */
    int32_t zero_copy;     /**< of an engine: whether it works on the host's memory, where the two are the same */
} holocron_load_options;

/** A picture in memory of the caller's. */
typedef struct holocron_frame {
    const uint8_t* pixels;   /**< the upper left pixel; of NV12 the luma plane */
    int32_t width;           /**< in pixels */
    int32_t height;          /**< in pixels */
    ptrdiff_t stride;        /**< bytes from one row to the next; 0: the rows follow each other */
    int32_t format;          /**< a holocron_format */
    int32_t region_x;        /**< the part that is looked at, in pixels from the upper left corner */
    int32_t region_y;        /**< the same */
    int32_t region_width;    /**< in pixels; 0, and region_height 0: all of the frame */
    int32_t region_height;   /**< in pixels */
    const uint8_t* chroma;   /**< NV12's plane of chroma; NULL: it follows the rows of luma */
    ptrdiff_t chroma_stride; /**< bytes from one row of chroma to the next; 0: as stride */
    int32_t memory;          /**< a holocron_memory; on the GPU for networks that take frames and run there */
} holocron_frame;

/** A dense tensor in C order. */
typedef struct holocron_tensor {
    const char* name;     /**< of the network's input or output */
    int32_t type;         /**< a holocron_element_type */
    int32_t memory;       /**< a holocron_memory */
    size_t rank;          /**< number of dimensions */
    const int64_t* shape; /**< as many extents; of what a network takes or gives, -1 where it may vary */
    const void* data;     /**< the elements; NULL in what holocron_model_input and holocron_model_output give */
} holocron_tensor;

/** One class of an answer. */
typedef struct holocron_class {
    const char* label; /**< its name */
    int32_t index;     /**< its place among the labels */
    double score;      /**< its softmax probability; in a segmentation its share of the frame's pixels; 0 to 1 */
} holocron_class;

/** One object. */
typedef struct holocron_detection {
    float xmin; /**< in pixels of the frame, from its upper left corner */
    float ymin;
    float xmax;
    float ymax;
    float score;       /**< how certain the network is of it, 0 to 1 */
    int32_t index;     /**< the class's place among the labels */
    const char* label; /**< the class's name */
} holocron_detection;

/** Version of the library, e.g. "0.1.0". */
HOLOCRON_API const char* holocron_version(void);

/** What went wrong in this thread's last call that failed, in one line; "" if none did. Valid until the next one fails.
 */
HOLOCRON_API const char* holocron_last_error(void);

/** Set options to their defaults. */
HOLOCRON_API holocron_status holocron_load_options_init(holocron_load_options* options);

/** Open a bundle.
 *
 * \param path a bundle's folder, or an ONNX file out of one; UTF-8
 * \param options NULL for the defaults
 * \param model becomes the model, to be freed with holocron_model_free; NULL if it cannot be opened
 */
HOLOCRON_API holocron_status holocron_load(const char* path, const holocron_load_options* options,
                                           holocron_model** model);

/** Run the network twice on a black frame, so that the first real one does not wait for what is done once.
 *
 * \param height and width of the frames that will come, where the network takes frames of several sizes; 0 and 0 for
 * the largest
 */
HOLOCRON_API holocron_status holocron_model_warm_up(const holocron_model* model, int32_t height, int32_t width);

/** Release the network. Calls that are running finish, later ones are HOLOCRON_ERROR_BACKEND. May be called twice. */
HOLOCRON_API holocron_status holocron_model_close(holocron_model* model);

/** Free a model; NULL is allowed. */
HOLOCRON_API void holocron_model_free(holocron_model* model);

/** What a model is; NULL of a model that is NULL. */
HOLOCRON_API const char* holocron_model_name(const holocron_model* model);
HOLOCRON_API const char* holocron_model_precision(const holocron_model* model);
HOLOCRON_API const char* holocron_model_backend(const holocron_model* model);
HOLOCRON_API const char* holocron_model_device(const holocron_model* model);
/** The file that was opened, relative to the bundle; "" for a lone ONNX file. */
HOLOCRON_API const char* holocron_model_artefact(const holocron_model* model);
HOLOCRON_API holocron_status holocron_model_task(const holocron_model* model, holocron_task* task);
HOLOCRON_API holocron_status holocron_model_threads(const holocron_model* model, int32_t* threads);
/** Height and width in pixels that frames are resized to. */
HOLOCRON_API holocron_status holocron_model_input_size(const holocron_model* model, int32_t* height, int32_t* width);

/** Number of classes; 0 of a model that is NULL. */
HOLOCRON_API size_t holocron_model_label_count(const holocron_model* model);
/** Name of a class; NULL if there is none of that index. */
HOLOCRON_API const char* holocron_model_label(const holocron_model* model, size_t index);

/** Number of inputs and outputs; 0 of a model that is NULL. */
HOLOCRON_API size_t holocron_model_input_count(const holocron_model* model);
HOLOCRON_API size_t holocron_model_output_count(const holocron_model* model);
/** Describe an input or output; its data is NULL. */
HOLOCRON_API holocron_status holocron_model_input(const holocron_model* model, size_t index, holocron_tensor* tensor);
HOLOCRON_API holocron_status holocron_model_output(const holocron_model* model, size_t index, holocron_tensor* tensor);

/** Classify frames, find objects in them, or find the class of each of their pixels.
 *
 * \param frames as many as count; may be NULL if count is 0
 * \param results become the answers, to be freed with holocron_results_free; NULL on failure
 */
HOLOCRON_API holocron_status holocron_classify(const holocron_model* model, const holocron_frame* frames, size_t count,
                                               holocron_results** results);
HOLOCRON_API holocron_status holocron_detect(const holocron_model* model, const holocron_frame* frames, size_t count,
                                             holocron_results** results);
HOLOCRON_API holocron_status holocron_segment(const holocron_model* model, const holocron_frame* frames, size_t count,
                                              holocron_results** results);

/** Free answers; NULL is allowed. */
HOLOCRON_API void holocron_results_free(holocron_results* results);
/** Number of frames that were answered; 0 of results that are NULL. */
HOLOCRON_API size_t holocron_results_count(const holocron_results* results);

/** Number of classes that an answer of a classifier ranks, or that a frame has in one of a segmenter. */
HOLOCRON_API holocron_status holocron_results_class_count(const holocron_results* results, size_t frame, size_t* count);
/** One of them, the likeliest or the largest first. */
HOLOCRON_API holocron_status holocron_results_class(const holocron_results* results, size_t frame, size_t rank,
                                                    holocron_class* found);
/** A classifier's logits; count becomes 0 where the network gives the likeliest classes alone. */
HOLOCRON_API holocron_status holocron_results_logits(const holocron_results* results, size_t frame,
                                                     const float** logits, size_t* count);

/** Number of objects, and one of them, the most certain first. */
HOLOCRON_API holocron_status holocron_results_detection_count(const holocron_results* results, size_t frame,
                                                              size_t* count);
HOLOCRON_API holocron_status holocron_results_detection(const holocron_results* results, size_t frame, size_t index,
                                                        holocron_detection* found);
/** 0 if these are all objects, exactly; otherwise a sum of: 1 some should have been suppressed, 2 the least certain are
 * missing, 4 more boxes reached the threshold than take part. */
HOLOCRON_API holocron_status holocron_results_detection_status(const holocron_results* results, size_t frame,
                                                               int32_t* flags);

/** A segmenter's classes as the network gives them, row by row; padding is still in them. */
HOLOCRON_API holocron_status holocron_results_class_map(const holocron_results* results, size_t frame,
                                                        const int32_t** classes, size_t* height, size_t* width);
/** The class of each pixel of the frame, row by row.
 *
 * \param classes room for capacity entries; NULL to ask for the size alone
 * \param capacity at least height times width, or HOLOCRON_ERROR_ARGUMENT
 */
HOLOCRON_API holocron_status holocron_results_pixel_classes(const holocron_results* results, size_t frame,
                                                            int32_t* classes, size_t capacity, size_t* height,
                                                            size_t* width);

/** What the network itself gives for frames. \param outputs to be freed with holocron_tensors_free; NULL on failure */
HOLOCRON_API holocron_status holocron_run_frames(const holocron_model* model, const holocron_frame* frames,
                                                 size_t count, holocron_tensors** outputs);
/** What the network is fed for frames: holocron_run accepts it. */
HOLOCRON_API holocron_status holocron_feeds(const holocron_model* model, const holocron_frame* frames, size_t count,
                                            holocron_tensors** inputs);
/** Run the network once on tensors, every input of it by its name. */
HOLOCRON_API holocron_status holocron_run(const holocron_model* model, const holocron_tensor* inputs, size_t count,
                                          holocron_tensors** outputs);

/** Free tensors; NULL is allowed. */
HOLOCRON_API void holocron_tensors_free(holocron_tensors* tensors);
/** Number of tensors; 0 of NULL. */
HOLOCRON_API size_t holocron_tensors_count(const holocron_tensors* tensors);
/** One of them, in the order of their names. */
HOLOCRON_API holocron_status holocron_tensors_at(const holocron_tensors* tensors, size_t index,
                                                 holocron_tensor* tensor);
/** One of them by its name. */
HOLOCRON_API holocron_status holocron_tensors_find(const holocron_tensors* tensors, const char* name,
                                                   holocron_tensor* tensor);

#ifdef __cplusplus
}
#endif

#endif
