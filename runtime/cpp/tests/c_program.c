/* That the header is C, and that a C program can do everything with it: a bundle and a picture of raw RGB in, text out. */
#include <holocron/runtime.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char* what) {
    fprintf(stderr, "%s: %s\n", what, holocron_last_error());
    return 1;
}

static unsigned char* read_pixels(const char* path, size_t size) {
    FILE* file = fopen(path, "rb");
    unsigned char* pixels = malloc(size);
    if (file == NULL || pixels == NULL || fread(pixels, 1, size, file) != size) {
        free(pixels);
        pixels = NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    return pixels;
}

static int print_results(const holocron_results* results, holocron_task task) {
    size_t count = 0;
    size_t i = 0;
    if (task == HOLOCRON_TASK_DETECTION) {
        if (holocron_results_detection_count(results, 0, &count) != HOLOCRON_OK) {
            return failed("detection_count");
        }
        for (i = 0; i < count; ++i) {
            holocron_detection object;
            if (holocron_results_detection(results, 0, i, &object) != HOLOCRON_OK) {
                return failed("detection");
            }
            printf("%d %.9g %.9g %.9g %.9g %.9g\n", object.index, (double)object.score, (double)object.xmin,
                   (double)object.ymin, (double)object.xmax, (double)object.ymax);
        }
        return 0;
    }
    if (holocron_results_class_count(results, 0, &count) != HOLOCRON_OK) {
        return failed("class_count");
    }
    for (i = 0; i < count; ++i) {
        holocron_class found;
        if (holocron_results_class(results, 0, i, &found) != HOLOCRON_OK) {
            return failed("class");
        }
        printf("%d %.17g %s\n", found.index, found.score, found.label);
    }
    return 0;
}

int main(int argc, char** argv) {
    holocron_load_options options;
    holocron_model* model = NULL;
    holocron_results* results = NULL;
    holocron_frame frame = {0};
    holocron_task task = HOLOCRON_TASK_CLASSIFICATION;
    unsigned char* pixels = NULL;
    holocron_status status = HOLOCRON_OK;
    int code = 0;
    if (argc != 6) {
        fprintf(stderr, "usage: %s BUNDLE PRECISION RGB WIDTH HEIGHT\n", argv[0]);
        return 2;
    }
    holocron_load_options_init(&options);
    options.precision = argv[2];
    options.threads = 1;
    if (holocron_load(argv[1], &options, &model) != HOLOCRON_OK) {
        return failed("load");
    }
    holocron_model_task(model, &task);
    frame.width = atoi(argv[4]);
    frame.height = atoi(argv[5]);
    frame.format = HOLOCRON_FORMAT_RGB;
    pixels = read_pixels(argv[3], (size_t)frame.width * (size_t)frame.height * 3);
    frame.pixels = pixels;
    if (task == HOLOCRON_TASK_DETECTION) {
        status = holocron_detect(model, &frame, 1, &results);
    } else if (task == HOLOCRON_TASK_SEGMENTATION) {
        status = holocron_segment(model, &frame, 1, &results);
    } else {
        status = holocron_classify(model, &frame, 1, &results);
    }
    code = status == HOLOCRON_OK ? print_results(results, task) : failed("run");
    holocron_results_free(results);
    holocron_model_free(model);
    free(pixels);
    return code;
}
